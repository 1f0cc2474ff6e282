"""Mixtures of experts: routing against its definition, load statistics, training, and what is never dropped."""

from __future__ import annotations

import pytest
import torch

import interlace
from interlace.base.errors import ConfigError
from interlace.base.segments import Segments
from interlace.data.batches import Batch
from interlace.layers.moe import Load, MoE, MoEConfig
from interlace.layers.norm import NormStyle
from interlace.model.config import ModelConfig
from interlace.model.presets import PRESETS, preset
from interlace.train.optimizer import parameter_groups
from interlace.train.recipe import TrainSettings
from interlace.train.trainer import Trainer

SIZES = {"experts": 8, "chosen": 3, "width": 6}


def build(**changes):
    torch.manual_seed(0)
    moe = MoEConfig(**{**SIZES, **changes}).build(10, NormStyle(1e-6)).double()
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    return moe


def test_softmax_scores_are_renormalised_over_the_chosen():
    moe, x = build(scale=2.0), torch.randn(20, 10, dtype=torch.float64)
    chosen, weights, _ = moe.route(x)
    logits = x @ moe.router.weight.T
    best = logits.topk(3)
    assert torch.equal(chosen, best.indices)
    torch.testing.assert_close(weights, 2 * best.values.softmax(-1))


def test_a_correction_chooses_and_does_not_weigh():
    moe, x = build(scores="sigmoid", correction=True, normalise=False), torch.randn(20, 10, dtype=torch.float64)
    moe.correction.data = torch.tensor([0.0] * 7 + [5.0], dtype=torch.float64)
    chosen, weights, scores = moe.route(x)
    assert bool((chosen == 7).any(1).all())
    torch.testing.assert_close(weights, scores.gather(1, chosen))


def test_only_experts_of_the_chosen_groups_are_chosen():
    moe, x = build(scores="sigmoid", groups=4, chosen_groups=2), torch.randn(50, 10, dtype=torch.float64)
    chosen, _, scores = moe.route(x)
    best = scores.unflatten(1, (4, 2)).sum(-1).topk(2).indices
    for row in range(50):
        assert set((chosen[row] // 2).tolist()) <= set(best[row].tolist())


def test_no_token_is_dropped_however_uneven_the_load():
    """All tokens to the same experts: each is still the sum of its own three."""
    moe, x = build(), torch.randn(33, 10, dtype=torch.float64).abs()
    moe.router.weight.data[:3] = 50.0
    chosen, _, _ = moe.route(x)
    assert set(chosen.flatten().tolist()) == {0, 1, 2}
    out, _ = moe(x)
    for row in range(33):
        torch.testing.assert_close(out[row], moe(x[row : row + 1])[0][0])
    assert bool((out != 0).all())


def test_load_statistics():
    moe = build().train()
    x = torch.randn(64, 10, dtype=torch.float64, requires_grad=True)
    _, load = moe(x)
    assert int(load.counts.sum()) == 64 * 3
    assert load.busiest >= 1
    even = Load(torch.full((8,), 24), torch.full((8,), 1 / 8, dtype=torch.float64))
    assert float(even.balance) == pytest.approx(1.0)
    load.balance.backward()
    assert float(moe.router.weight.grad.abs().sum()) > 0
    assert moe.eval()(x)[1] is None  # nothing is counted where nothing is trained


def settings(**changes):
    return TrainSettings(tokens=10_000, learning_rate=3e-3, warmup=0.0, decay=0.0, **changes)


def batch(vocabulary):
    tokens = torch.randint(vocabulary, (4, 33))
    return Batch(tokens[:, :-1].flatten(), tokens[:, 1:].flatten(), Segments.equal(4, 32))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [n for n in PRESETS if n not in ("tiny-hybrid", "tiny-sliding")])
def test_every_kind_of_layer_trains(name, precision):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset(name))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer, given = Trainer.of(model, settings(), 30, precision), batch(model.config.vocabulary)
    losses = [trainer.step(given).loss for _ in range(12)]
    assert losses[-1] < losses[0]
    for n, p in model.named_parameters():
        assert not torch.equal(p, before[n]), n


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in ("tiny-hybrid", "tiny-sliding")])
def test_every_kind_of_layer_goes_on_from_a_checkpoint(name, tmp_path):
    """Written and resumed after two steps, training ends with the bits of an unbroken run."""
    torch.manual_seed(0)
    first = Trainer.of(interlace.HybridLM(preset(name)), settings(), 30)
    batches = [batch(first.model.config.vocabulary) for _ in range(4)]
    for given in batches[:2]:
        first.step(given)
    tmp_path.joinpath("step").mkdir()
    first.write(tmp_path / "step")
    second = Trainer.of(interlace.HybridLM(preset(name)), settings(), 30)
    second.resume(tmp_path / "step")
    for given in batches[2:]:
        assert first.step(given).loss == second.step(given).loss
    for (n, ours), theirs in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), n


def test_training_evens_the_load():
    """By the loss, and by the corrections, from corrections that send all to two experts."""
    for correction in (False, True):
        torch.manual_seed(0)
        table = preset("tiny-gated-attention").to_dict()
        table["moe"] = {**table["moe"], "correction": correction, "scores": "sigmoid"}
        model = interlace.HybridLM(ModelConfig.from_dict(table))
        mixtures = [m for m in model.modules() if isinstance(m, MoE)]
        for m in mixtures:
            if correction:
                m.correction.data[:2] = 1.0
        given = batch(model.config.vocabulary)
        trainer = Trainer.of(model, settings(balance_loss=1.0, balance_rate=0.05), 200)
        loads = []
        for step in range(40):
            if step not in (0, 39):
                trainer.step(given)
                continue
            with torch.no_grad():
                found = [x.busiest for x in model.train().read(given.tokens, given.segments).loads if x is not None]
            assert trainer.step(given).busiest == max(found)
            assert len(found) == len(mixtures)
            loads.append(sum(found) / len(found))
        assert loads[-1] < 0.9 * loads[0], (correction, loads)


def test_experts_decay_and_corrections_do_not():
    model = interlace.HybridLM(preset("tiny-kimi"))
    decayed, other = ({id(p) for p in g["params"]} for g in parameter_groups(model, 0.1))
    mixture = next(m for m in model.modules() if isinstance(m, MoE))
    assert {id(mixture.first), id(mixture.second), id(mixture.router.weight)} <= decayed
    assert id(mixture.correction) in other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chosen": 9}, "chosen: 9 is more than experts = 8"),
        ({"groups": 3}, "groups: 3 does not divide experts = 8"),
        ({"groups": 4, "chosen_groups": 5}, "chosen_groups: 5 is more than groups = 4"),
        ({"groups": 4, "chosen_groups": 1}, "chosen: 3 is more than the experts in chosen_groups"),
        ({"shared_gate": True}, "shared_gate: there is no shared expert"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_named(changes, words):
    table = preset("tiny-gated-attention").to_dict()
    table["moe"] = {**SIZES, **changes}
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_dict(table)


def test_a_feed_forward_table_that_is_not_there():
    table = preset("tiny-hybrid").to_dict()
    with pytest.raises(ConfigError, match=r"attention.mlp: there is no table \[model.experts\] of kind mlp or moe"):
        ModelConfig.from_dict({**table, "attention": {**table["attention"], "mlp": "experts"}})
