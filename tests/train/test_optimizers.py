"""Optimizers: which moves which parameter, Muon beside torch's, parts of a batch, and what is averaged."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import interlace
from interlace.base.errors import ConfigError
from interlace.base.schema import validate
from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, Batch, parts
from interlace.layers.parts import Parts
from interlace.model.presets import preset
from interlace.train.average import Average
from interlace.train.muon import Muon, direction, newton_schulz
from interlace.train.objectives.base import Loss
from interlace.train.objectives.next_token import next_token_losses
from interlace.train.optimizer import routes
from interlace.train.recipe import TrainSettings
from interlace.train.schedule import Schedule
from interlace.train.trainer import Trainer


def batch(step, vocabulary=64, lengths=(16, 16, 16, 16)):
    total = sum(lengths)
    tokens = torch.randint(vocabulary, (total,), generator=torch.Generator().manual_seed(step))
    targets = tokens.roll(-1)
    segments = Segments.from_lengths(lengths)
    targets[segments.last()] = IGNORE
    return Batch(tokens, targets, segments)


def trainer_of(name="tiny-hybrid", **settings):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset(name).replace(vocabulary=64))
    return Trainer.of(model, TrainSettings(tokens=1, learning_rate=1e-2, warmup=0.0, **settings), 8)


# What Muon moves in a block of each kind, by the end of its name; all else is AdamW's.
MATRICES = {
    "attention": {"query", "key", "value", "output"},
    "gated_delta": {"query", "key", "value", "gate", "decay", "beta", "output"},
    "kimi_delta": {"query", "key", "value", "beta", "decay_down", "decay_up", "gate_down", "gate_up", "output"},
    "latent_attention": {"query", "query_down", "compress", "expand", "output"},
    "mamba": {"input", "selection", "step", "output"},
    "mamba2": {"input", "output"},
    "lstm": {"input", "recurrent", "output"},
    "hyena": {"input", "output", "age", "mix", "taps"},
    "mlp": {"gate", "up", "down"},
    "moe": {"router", "first", "second", "compress", "expand"},
}
TABLES = {
    "attention": {"heads": 2, "gate": True},
    "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
    "kimi_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
    "latent_attention": {
        "heads": 2,
        "latent": 12,
        "key_dim": 8,
        "shared_dim": 4,
        "value_dim": 6,
        "query_latent": 10,
        "bias": True,
    },
    "mamba": {"inner": 32, "state_dim": 4, "step_rank": 3, "bias": True},
    "mamba2": {"heads": 4, "head_dim": 8, "groups": 2, "state_dim": 6, "bias": True},
    "lstm": {"hidden": 16},
    "hyena": {"channels": 20},
    "moe": {"experts": 4, "chosen": 2, "width": 10, "shared_width": 8, "shared_gate": True, "correction": True},
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_parameter_of_every_kind_has_one_optimizer(kind):
    tables = {kind: TABLES[kind], "mlp": {"width": 20, "bias": True}}
    config = {"width": 24, "depth": 1, "vocabulary": 64, "pattern": [kind], **tables}
    model = interlace.HybridLM(interlace.ModelConfig.from_dict(config))
    found = routes(model, "muon")
    assert found.keys() == dict(model.named_parameters()).keys()
    allowed = MATRICES[kind] | MATRICES["mlp"]
    for name, p in model.named_parameters():
        words = name.removesuffix(".weight").split(".")
        matrix = words[0] == "blocks" and words[-1] in allowed and not name.endswith("bias") and min(p.shape) > 1
        expected = "muon" if matrix else "adamw" if p.requires_grad else "none"
        assert found[name].optimizer == expected, name
        if p.ndim < 2 or words[-1] in ("convolution", "A_log", "correction"):
            assert found[name].optimizer != "muon"
        if found[name].parts is not None:
            whole = found[name].parts
            assert whole.repeat * sum(whole.sizes) == p.shape[-2]
    assert all(route.optimizer == "adamw" for name, route in routes(model).items() if "correction" not in name)


def test_parts_are_taken_apart_and_joined():
    weight = torch.arange(2.0 * 12 * 3).view(2, 12, 3)
    for fused in (Parts((4, 8)), Parts((1, 2), 4), Parts((12,)), Parts((2, 2), 3)):
        assert torch.equal(fused.join(fused.split(weight)), weight)
    query, gate = Parts((1, 2), 4).split(weight[0])
    assert torch.equal(query[:, 0], weight[0, ::3, 0])
    assert gate.shape == (8, 3)


def test_a_plain_matrix_moves_as_torch_s_muon_moves_it():
    """torch's takes bfloat16, whose sums our batched products add in another order: 8 bits (3e-2 of the largest)."""
    for shape in ((24, 16), (16, 24), (20, 20)):
        torch.manual_seed(1)
        ours, theirs = (nn.Parameter(torch.randn(shape)) for _ in range(2))
        theirs.data.copy_(ours.data)
        rest = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
        one = Muon([ours], [None], rest, learning_rate=0.02, weight_decay=0.1)
        other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        before = ours.detach().clone()
        for _ in range(4):
            gradient = torch.randn(shape)
            for p, optimizer in ((ours, one), (theirs, other)):
                p.grad = gradient.clone()
                optimizer.step()
            held = one.state[ours]["momentum"], other.state[theirs]["momentum_buffer"]
            torch.testing.assert_close(*held, rtol=0, atol=0)
        moved = float((ours.detach() - before).abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-2 * moved)


def test_newton_schulz_equals_its_float64_self_and_flattens_singular_values():
    for shape in ((5, 12), (12, 5), (3, 7, 7), (2, 1, 4)):
        x = torch.randn(shape)
        kept = x.clone()
        found = newton_schulz(x, torch.float32)
        assert torch.equal(x, kept)
        wide = newton_schulz(x.double(), torch.float64)
        torch.testing.assert_close(found, wide, rtol=1e-4, atol=1e-5)
        values = torch.linalg.svdvals(found)
        assert values.max() < 1.3
    assert torch.equal(newton_schulz(torch.zeros(3, 4), torch.float32), torch.zeros(3, 4))


def test_parts_and_experts_are_orthogonalised_one_by_one():
    weight = torch.randn(3, 12, 5)
    found = direction(weight, Parts((4, 8)), torch.float32)
    for expert in range(3):
        for rows in (slice(0, 4), slice(4, 12)):
            alone = direction(weight[expert, rows], None, torch.float32)
            torch.testing.assert_close(found[expert, rows], alone, rtol=1e-5, atol=1e-6)


def test_muon_never_changes_its_momentum_but_by_gradients():
    p = nn.Parameter(torch.randn(6, 4, dtype=torch.bfloat16))
    muon = Muon([p], [None], torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), learning_rate=0.1, weight_decay=0.0)
    p.grad = torch.randn(6, 4).bfloat16()
    muon.step()
    torch.testing.assert_close(muon.state[p]["momentum"], (0.05 * p.grad.float()).bfloat16(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi"])
def test_muon_trains_and_resumes_bit_for_bit(name, tmp_path):
    whole, first = (trainer_of(name, optimizer="muon", average=0.9, matrix_learning_rate=0.02) for _ in range(2))
    losses = [whole.step(batch(i)).loss for i in range(6)]
    for i in range(3):
        first.step(batch(i))
    tmp_path.joinpath("step").mkdir()
    first.write(tmp_path / "step")
    again = trainer_of(name, optimizer="muon", average=0.9, matrix_learning_rate=0.02)
    again.resume(tmp_path / "step")
    assert [again.step(batch(i)).loss for i in range(3, 6)] == losses[3:]
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for key, mean in whole.average.tensors.items():
        assert torch.equal(mean, again.average.tensors[key])
    opened = interlace.load(tmp_path / "step/average")
    assert opened.config.width == whole.model.config.width


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_after_a_step_that_was_left_out_is_exact(optimizer, tmp_path):
    """AdamW does not count such a step, and its bias corrections go on as if there had been none."""

    def made():
        trainer = trainer_of(optimizer=optimizer)
        inner = trainer.objective

        def objective(model, given):
            loss = inner(model, given)
            return Loss(loss.value, loss.minimised * (torch.nan if trainer.done == 2 else 1), loss.loads)

        trainer.objective = objective
        return trainer

    whole, first, again = made(), made(), made()
    losses = [whole.step(batch(i)).loss for i in range(7)]
    for i in range(4):
        first.step(batch(i))
    (tmp_path / "step").mkdir()
    first.write(tmp_path / "step")
    again.resume(tmp_path / "step")
    assert again.guard.to_dict() == first.guard.to_dict()
    assert [again.step(batch(i)).loss for i in range(4, 7)] == losses[4:]
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_average_that_was_not_kept_begins_with_the_weights(tmp_path):
    first, again = trainer_of(), trainer_of(average=0.9)
    first.step(batch(0))
    (tmp_path / "step").mkdir()
    first.write(tmp_path / "step")
    again.resume(tmp_path / "step")
    for name, p in first.model.named_parameters():
        assert torch.equal(again.average.tensors[name], p)


@pytest.mark.parametrize("lengths", [(16,) * 4, (3, 40, 1, 9, 11), (64,)])
def test_a_batch_in_parts_is_the_whole_batch(lengths):
    """Losses and gradients are weighted by targets; sums are in another order (float32)."""
    whole, cut = trainer_of(), trainer_of(accumulate=4)
    given = batch(0, lengths=lengths)
    shares = cut.shares(given)
    assert len(shares) == 4
    assert sum(s.counted for s in shares) == given.counted
    one, other = whole.gradients([given]), cut.gradients(shares)
    assert float(other.value) == pytest.approx(float(one.value), rel=1e-6)
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_parts_are_cut_where_rows_end_and_lose_no_token():
    given = batch(0, lengths=(4, 12, 16, 10, 6, 16))  # four rows of 16
    found = parts(given, 4)
    assert [p.segments.total for p in found] == [16] * 4
    assert torch.cat([p.tokens for p in found]).equal(given.tokens)
    weighted = Batch(given.tokens, given.targets, given.segments, torch.rand(64))
    assert sum(p.counted for p in parts(weighted, 3)) == pytest.approx(weighted.counted)
    assert all(p.whole == weighted.counted for p in parts(weighted, 3))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_z_loss_is_that_of_the_formula(weighted):
    hidden, weight = torch.randn(40, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(30, (40,))
    targets[::5] = IGNORE
    weights = torch.rand(40) if weighted else None
    found, value = next_token_losses(hidden, weight, targets, weights=weights, z_loss=0.1)
    mine = torch.autograd.grad(found, (hidden, weight))
    logits = hidden @ weight.T
    each = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    shares = (targets != IGNORE).float() * (1 if weights is None else weights)
    shares = shares / shares.sum()
    sums = logits.logsumexp(-1)
    expected = (each * shares).sum() + 0.1 * (sums.square() * shares).sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value, (each * shares).sum(), rtol=1e-5, atol=1e-6)
    for a, b in zip(mine, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_average_forgets_its_start_and_gives_the_weights_back():
    layer = nn.Linear(3, 2)
    average = Average(layer, 0.5)
    start = layer.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            layer.weight.fill_(float(step))
        average.update(step)
    assert float(average.tensors["weight"].mean()) == pytest.approx(18.0, abs=0.01)
    with average.in_place():
        assert torch.equal(layer.weight, average.tensors["weight"])
    assert torch.equal(layer.weight, torch.full_like(start, 19.0))


def test_schedules_rise_and_fall():
    for kind in ("cosine", "linear"):
        schedule = Schedule(100, 1.0, warmup=0.1, kind=kind, final=0.1)
        rates = [schedule.rate(s) for s in range(100)]
        assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
        assert all(b < a for a, b in pairwise(rates[10:]))
        assert 0.1 < rates[-1] < 0.12
    middle = {kind: Schedule(99, 1.0, warmup=0.0, kind=kind).rate(50) for kind in ("cosine", "linear")}
    assert middle == pytest.approx({"cosine": 0.5, "linear": 0.5}, abs=0.02)
    shapes = {x: Schedule(100, 1.0, decay=0.5, shape=x) for x in ("linear", "cosine", "sqrt")}
    for schedule in shapes.values():
        rates = [schedule.rate(s) for s in range(5, 100)]
        assert rates[:45] == [1.0] * 45
        assert all(b < a for a, b in pairwise(rates[46:]))
        assert 0 < rates[-1] < 0.05
    assert shapes["sqrt"].rate(60) < shapes["linear"].rate(60) < shapes["cosine"].rate(60)
    assert math.isclose(Schedule(100, 2.0, decay=0.5, final=0.5).rate(99), 1.02, abs_tol=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "cosine", "horizons": [0.5]}, 'horizons: are of schedule = "wsd"'),
        ({"matrix_learning_rate": 0.1}, 'set optimizer = "muon"'),
        ({"spike": 0.5}, "spike: must be above 1"),
        ({"optimizer": "sgd"}, "optimizer: input should be 'adamw' or 'muon', got 'sgd'"),
        ({"average": 1.0}, "average: input should be less than 1"),
        ({"accumulate": 0}, "accumulate: input should be greater than 0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ConfigError) as caught:
        validate(TrainSettings, {"tokens": 1, **settings}, "train")
    assert words in str(caught.value)
