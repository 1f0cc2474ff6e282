"""Whole models by the Triton kernels, in the interpreter: logits, gradients and a decoded token equal the CPU's."""

from __future__ import annotations

import pytest
import torch

import interlace
from interlace.base.segments import Segments
from interlace.model.presets import preset
from interlace.ops.core import gpu
from interlace.ops.core.backends import Backend

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())]
WANTED = Backend.wanted


def taken(self, *arguments):
    """Let "auto" take the Triton kernels wherever they can serve, as it does on a GPU."""
    if not self.name.startswith("triton"):
        return WANTED(self, *arguments)
    return self.obstacle(*arguments) is None


def results(model, segments, tokens):
    model.zero_grad()
    logits, _ = model(tokens, segments)
    logits.square().mean().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    with torch.no_grad():
        state = model(tokens, segments)[1]
        following, _ = model(torch.arange(segments.count), Segments.equal(segments.count, 1), state)
    return logits.detach(), gradients, following


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-gated-attention", "tiny-kimi", "tiny-granite"])
def test_a_model_by_the_kernels_for_a_gpu(name, monkeypatch):
    model = interlace.HybridLM(preset(name).replace(vocabulary=64)).float()
    segments, tokens = Segments.from_lengths([5, 9, 1]), torch.randint(64, (15,))
    due = results(model, segments, tokens)
    launched, launch = [], gpu.launch
    monkeypatch.setattr(gpu, "launch", lambda *a: (launched.append(a[0]), launch(*a)))
    monkeypatch.setattr(Backend, "wanted", taken)
    found = results(model, segments, tokens)
    assert len(launched) > 20
    for a, b in zip(found, due, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-6


def test_a_step_of_training_in_bfloat16(monkeypatch):
    """Losses of a few steps, with float32 master weights under autocast, beside the CPU's own kernels."""
    from interlace.data.batches import Batch
    from interlace.train.objectives.next_token import NextToken

    segments, tokens = Segments.from_lengths([20, 3]), torch.randint(64, (23,))
    batch = Batch(tokens, tokens.roll(-1), segments)
    losses = []
    for kernels in (False, True):
        torch.manual_seed(0)
        model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=64)).float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with monkeypatch.context() as patch:
            if kernels:
                patch.setattr(Backend, "wanted", taken)
            for _ in range(3):
                loss = NextToken("bfloat16")(model, batch)
                optimizer.zero_grad()
                loss.minimised.backward()
                optimizer.step()
        losses.append(float(loss.value.detach()))
    assert abs(losses[0] - losses[1]) < 0.02 * losses[0]
