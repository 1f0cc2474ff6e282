"""Blocks that training runs twice, or compiles: the same gradients, less memory, and a plain word where it fails."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import interlace
from interlace.base.errors import ConfigError, StateUsed
from interlace.base.segments import Segments
from interlace.model.presets import PRESETS, preset
from interlace.train.blocks import through

RAGGED = Segments.from_lengths([17, 1, 24, 6])


def model_of(name):
    torch.manual_seed(0)
    return interlace.HybridLM(preset(name)).train()


def gradients(model, tokens):
    read = model.read(tokens, RAGGED)
    loads = sum(load.scores.square().sum() for load in read.loads if load is not None)
    model.zero_grad()
    (read.hidden.square().sum() + loads).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("tiny")])
def test_blocks_that_are_run_again_give_the_same_gradients(name):
    model = model_of(name)
    tokens = torch.randint(model.config.vocabulary, (48,))
    want = gradients(model, tokens)
    model.through = through(False, "block")
    for a, b in zip(want, gradients(model, tokens), strict=True):
        assert torch.equal(a, b)


def kept_bytes(model, tokens):
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.hidden(tokens, RAGGED)
    return sum(kept.values())


def test_blocks_that_are_run_again_keep_their_inputs_alone():
    """What autograd keeps inside a block is not counted by hooks outside of it: nothing inside is kept."""
    model = model_of("tiny-hybrid")
    tokens = torch.randint(model.config.vocabulary, (48,))
    plain = kept_bytes(model, tokens)
    model.through = through(False, "block")
    rows = 4 * 48 * model.config.width
    assert kept_bytes(model, tokens) < 6 * rows  # of the last norm
    assert plain > 10 * rows * model.config.depth


def test_a_pass_that_is_run_again_returns_no_state_to_go_on_from():
    model = model_of("tiny-hybrid")
    model.through = through(False, "block")
    tokens = torch.randint(model.config.vocabulary, (48,))
    _, state = model(tokens, RAGGED)
    with pytest.raises(StateUsed):
        model(tokens, RAGGED, state)
    model.eval()  # whose passes are as always
    _, state = model(tokens, RAGGED)
    model(tokens, RAGGED, state)


def test_a_block_that_cannot_be_compiled_is_named(monkeypatch):
    model = model_of("tiny-hyena")

    def refuses(*_):
        raise torch._dynamo.exc.Unsupported("a border is data\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuses)
    model.through = through(True, "none")
    with pytest.raises(ConfigError, match=r"train\.compile: a block of Hyena .* a border is data; set .*false"):
        model.hidden(torch.zeros(48, dtype=torch.int64), RAGGED)


SCRIPT = """
import sys, torch
from interlace import HybridLM, Segments
from interlace.data.batches import Batch
from interlace.model.presets import preset
from interlace.train.recipe import TrainSettings
from interlace.train.blocks import through
from interlace.train.trainer import Trainer

name, recompute, backend = sys.argv[1:]

def losses(compile):
    torch.manual_seed(0)
    model = HybridLM(preset(name))
    settings = TrainSettings(tokens=1, learning_rate=1e-2, recompute=recompute if compile else "none")
    trainer = Trainer.of(model, settings, 4)
    if compile:
        model.through = through(True, recompute, backend)
    draw = torch.Generator().manual_seed(1)
    found = []
    for lengths in ([24, 24], [31, 1, 16], [48]):  # equal and ragged, and another number of sequences
        tokens = torch.randint(model.config.vocabulary, (48,), generator=draw)
        found.append(trainer.step(Batch(tokens, tokens.roll(-1), Segments.from_lengths(lengths))).loss)
    return torch.tensor(found)

torch.testing.assert_close(losses(True), losses(False), rtol=1e-5, atol=1e-6)  # sums in another order
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recompute", "backend"),
    [("tiny-hybrid-rope", "none", "inductor"), ("tiny-gated-attention", "block", "aot_eager")],
)
def test_compiled_blocks_train_alike(name, recompute, backend):
    """In a process of its own: the shape checks that the tests wrap around the operators cannot be traced."""
    command = [sys.executable, "-c", SCRIPT, name, recompute, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
