"""What a run says of itself: its metrics, loggers, a page on several runs, and a step that is taken again."""

from __future__ import annotations

import json
import shutil
import sys
import types

import pytest
import tomli_w
import torch
from small import recipe_of, texts_in

import interlace
from interlace.cli.main import run
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.evaluate.gates import gate_statistics
from interlace.model.presets import preset
from interlace.runs.training import TrainingRun
from interlace.train import trainer as trainers
from interlace.train.objectives.base import Loss
from interlace.train.replay import replay


@pytest.fixture
def plan(recipe, tmp_path):
    recipe["train"] |= {"tokens": 12 * 192, "evaluations": 2, "checkpoints": 3}
    file = tmp_path / "plan.toml"
    file.write_text(tomli_w.dumps(recipe))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    recipe = recipe_of(texts_in(folder / "texts"))
    recipe["train"] |= {"tokens": 12 * 192, "evaluations": 2, "checkpoints": 3}
    (folder / "plan.toml").write_text(tomli_w.dumps(recipe))
    assert run(["train", str(folder / "plan.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def done(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_metrics_tell_updates_gates_rate_and_memory(done):
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in rows if "update_ratio" in m] == [1, 11]
    assert all(0 < m["update_ratio"] < 1 for m in rows if "update_ratio" in m)
    assert all(m["peak_memory_bytes"] > 1 << 20 and 0 < m["flops_utilisation"] < 2 for m in rows)
    scored = [m for m in rows if "held_out_loss" in m]
    assert [m["step"] for m in scored] == [6, 12]
    for m in scored:
        assert 0 < m["gated_delta.decay_p05"] <= m["gated_delta.decay_mean"] <= m["gated_delta.decay_p95"] <= 1
        assert 0 <= m["gated_delta.beta_above_1"] <= 1
        assert 0 < m["gated_delta.beta_mean"] < 2


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi", "tiny-nemotron", "tiny-granite"])
def test_gates_are_those_that_the_layers_compute(name, monkeypatch):
    """Each kind's gates, beside the operands that its rule is given (float32)."""
    import interlace.layers.gated_delta as delta
    import interlace.layers.kimi_delta as kimi
    import interlace.layers.mamba2 as mamba

    model = interlace.HybridLM(preset(name).replace(vocabulary=64))
    given, seen = [], []
    for module in (delta, kimi, mamba):
        rule = module.run
        monkeypatch.setattr(module, "run", lambda x, rule=rule, **more: (given.append(x), rule(x, **more))[1])
    for block in model.blocks:
        if hasattr(getattr(block, "mixer", None), "gates"):
            block.mixer.register_forward_pre_hook(lambda mixer, inputs: seen.append(mixer.gates(inputs[0])))
    model(torch.randint(64, (30,)))
    assert len(given) == len(seen) > 0
    for operands, gates in zip(given, seen, strict=True):
        torch.testing.assert_close(gates["decay"].log(), operands.log_decay.flatten(1), rtol=1e-4, atol=1e-5)
        strength = gates.get("beta", gates.get("step"))
        torch.testing.assert_close(strength, operands.strength.to(strength.dtype), rtol=1e-5, atol=1e-6)


def test_looking_at_gates_changes_nothing(done):
    model = interlace.load(done)
    held = HeldOut(Corpus.open(done / "data"), 48, 480)
    before = held.score(model)
    assert gate_statistics(model, held.batches[0]) == gate_statistics(model, held.batches[0])
    assert held.score(model) == before
    assert not model.training


def test_rows_are_handed_to_a_logger(plan, tmp_path, monkeypatch, capsys):
    """A module of wandb's form stands for the packages, which need an account or a server."""
    calls = []
    fake = types.ModuleType("trackio")
    fake.init = lambda **named: calls.append(("init", named["name"], named["config"]["data"]["rows"]))
    fake.log = lambda numbers, step: calls.append((step, numbers))
    fake.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, "trackio", fake)
    assert run(["train", str(plan), "--out", str(tmp_path / "run"), "--log", "trackio"]) == 0
    assert calls[0] == ("init", "run", 4)
    assert calls[-1] == "finish"
    assert [c[0] for c in calls[1:-1]] == list(range(1, 13))
    assert all("loss" in c[1] and "step" not in c[1] for c in calls[1:-1])
    monkeypatch.setitem(sys.modules, "wandb", None)
    for kind, words in (("wandb", "pip install wandb"), ("wanbd", "did you mean 'wandb'")):
        assert run(["train", str(plan), "--out", str(tmp_path / "other"), "--log", kind]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_one_page_compares_several_runs(plan, done, tmp_path, capsys, monkeypatch):
    assert run(["train", str(plan), "--out", str(tmp_path / "slow"), "train.learning_rate=1e-4"]) == 0
    capsys.readouterr()
    page = tmp_path / "pages/both.html"
    assert run(["report", str(done), str(tmp_path / "slow"), "--out", str(page), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [r["run"] for r in document["runs"]] == ["run", "slow"]
    losses = [float(r["held-out bits/byte"]) for r in document["runs"]]
    assert losses[0] < losses[1]
    text = page.read_text()
    assert "data:image/png;base64" in text
    assert "slow" in text
    assert "refresh" not in text
    assert page.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    for arguments, words in (
        (["report"], "name run folders"),
        (["report", str(tmp_path / "pages")], "is no run folder"),
    ):
        assert run(arguments) == 2
        assert words in capsys.readouterr().err

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", stop)
    assert run(["report", str(done), "--out", str(page), "--watch"]) == 130
    assert 'http-equiv="refresh" content="10"' in page.read_text()


def test_a_replayed_step_is_the_step(done, capsys):
    lines = list(TrainingRun(done).metrics())
    kept = {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}
    for step in (1, 5, 10, 12):  # before the first checkpoint that is kept, and after
        found = replay(TrainingRun(done), step)
        assert found.loss == lines[step - 1]["loss"]
        assert found.grad_norm == pytest.approx(lines[step - 1]["grad_norm"], rel=1e-6)
        assert not found.first_bad
        assert not found.skipped
    assert kept == {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}
    assert run(["replay", str(done), "--step", "7"]) == 0
    shown = capsys.readouterr().out
    assert "block 0: mixer (gated_delta)" in shown
    assert "Every value is finite." in shown
    assert run(["replay", str(done), "--step", "13"]) == 2
    assert "must lie from 1 to 12" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["output", "gradient"])
def test_the_first_bad_layer_is_named(how, plan, tmp_path, monkeypatch, capsys):
    """An output that is infinite, or a gradient, of the second block's mixer: the run ends, and replay finds it."""
    made = trainers.Trainer.of

    def spoilt(*arguments, **named):
        trainer = made(*arguments, **named)
        mixer = trainer.model.blocks[1].mixer
        inner = mixer.forward

        def forward(*inputs):
            out, state = inner(*inputs)
            if not mixer.training or trainer.done < 4:
                return out, state
            return (out * torch.inf if how == "output" else Infinite.apply(out)), state

        mixer.forward = forward
        return trainer

    monkeypatch.setattr(trainers.Trainer, "of", spoilt)
    assert run(["train", str(plan), "--out", str(tmp_path / "run")]) == 1
    assert "step 7: not finite" in capsys.readouterr().err
    assert (tmp_path / "run/stopped/step-7.safetensors").is_file()
    assert run(["replay", str(tmp_path / "run"), "--step", "7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first_bad"] == "block 1: mixer (attention)"
    assert found["skipped"].startswith("not finite")
    page = (tmp_path / "run/report.html").read_text()
    assert "The run diverged" in page


class Infinite(torch.autograd.Function):
    """The same numbers, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return d * torch.inf


def test_a_loss_that_is_bad_by_itself_is_the_first(plan, tmp_path, capsys):
    assert run(["train", str(plan), "--out", str(tmp_path / "run")]) == 0
    from interlace.train import replay as module

    real = trainers.Trainer.of

    def spoilt(*arguments, **named):
        trainer = real(*arguments, **named)
        inner = trainer.objective
        trainer.objective = lambda model, batch: (
            lambda loss: Loss(loss.value * torch.nan, loss.minimised, loss.loads)
        )(inner(model, batch))
        return trainer

    module.Trainer.of, before = staticmethod(spoilt), module.Trainer.of
    try:
        assert replay(TrainingRun(tmp_path / "run"), 1).first_bad == "loss"
    finally:
        module.Trainer.of = staticmethod(before)
