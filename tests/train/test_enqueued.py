"""Steps as a GPU takes them, on the CPU: enqueued, their results read one step later, batches made ahead."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from watching import scored

import interlace
from interlace.base.errors import Diverged
from interlace.base.schema import validate
from interlace.base.segments import Segments
from interlace.checkpoint.tensors import read_header
from interlace.data.batches import Batch, few
from interlace.model.presets import preset
from interlace.runs.training import TrainingRun
from interlace.train import loop
from interlace.train.ahead import Ahead
from interlace.train.guard import Guard
from interlace.train.objectives.base import Loss
from interlace.train.objectives.next_token import NextToken
from interlace.train.recipe import Recipe, TrainSettings
from interlace.train.steps import take_steps
from interlace.train.trainer import Trainer


def batch(step, vocabulary=64, rows=2, length=16):
    tokens = torch.randint(vocabulary, (rows * length,), generator=torch.Generator().manual_seed(step))
    return Batch(tokens, tokens.roll(-1), Segments.equal(rows, length))


def trainer_of(deferred, name="tiny-hybrid", steps=8, objective=None, **settings):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset(name).replace(vocabulary=64))
    made = Trainer.of(model, TrainSettings(tokens=1, learning_rate=1e-2, warmup=0.0, **settings), steps)
    made._deferred = deferred
    made.objective = objective or made.objective
    return made


def copies(trainer):
    state = [s[k].clone() for s in trainer.optimizer.state.values() for k in ("exp_avg", "exp_avg_sq", "step")]
    return [p.detach().clone() for p in trainer.model.parameters()] + state


class Spoilt:
    """The loss of next tokens, which is not finite at some steps, or whose gradient is not."""

    def __init__(self, at, how, times=3):
        self.calls, self.at, self.how, self.inner = 0, range(at, at + times), how, NextToken()

    def __call__(self, model, given):
        loss = self.inner(model, given)
        self.calls += 1
        if self.calls - 1 not in self.at:
            return loss
        wrong = loss.minimised * math.nan
        if self.how == "gradient":  # the value is good
            wrong = loss.minimised + 0 * (model.norm.weight - model.norm.weight.detach()).sum().sqrt()
        return Loss(loss.value if self.how == "gradient" else wrong, wrong, loss.loads)


@pytest.mark.parametrize("clip", [0.05, 1e9])
@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi"])
def test_an_enqueued_step_is_the_step_that_waits(name, clip):
    """Clipped on the device or on the host: what is multiplied is rounded otherwise (float32)."""
    runs = [trainer_of(deferred, name, clip=clip) for deferred in (False, True)]
    taken = [[t.step(batch(i)) for i in range(5)] for t in runs]
    for waited, enqueued in zip(*taken, strict=True):
        assert enqueued.waits
        assert not waited.waits
        assert enqueued.loss == pytest.approx(waited.loss, rel=1e-4)
        assert enqueued.grad_norm == pytest.approx(waited.grad_norm, rel=1e-3)
        assert enqueued.learning_rate == waited.learning_rate
        assert enqueued.busiest == pytest.approx(waited.busiest)
    for a, b in zip(copies(runs[0]), copies(runs[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi"])
@pytest.mark.parametrize("deferred", [True, False])
def test_three_steps_that_are_not_finite_change_nothing_and_end_the_run(how, name, deferred):
    """Nor does a step that was enqueued before anybody looked; corrections of experts and the average stay too."""
    trainer = trainer_of(deferred, name, objective=Spoilt(3, how), average=0.9)
    for step in range(3):
        trainer.step(batch(step))
    trainer.settle()
    before = copies(trainer)
    bad = [trainer.step(batch(3)), trainer.step(batch(4))]
    with pytest.raises(Diverged, match="^step 6: not finite"):
        for step in (5, 6):
            trainer.step(batch(step))
    assert [x.bad for x in bad] == [1, 2]
    assert trainer.done == 5
    for a, b in zip(before, copies(trainer), strict=True):
        assert torch.equal(a, b)
    assert math.isfinite(trainer.step(batch(3)).loss)  # a caller who changed something may go on
    assert trainer.done == 6


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_one_bad_step_is_left_out(how, deferred):
    trainer = trainer_of(deferred, objective=Spoilt(2, how, times=1))
    taken = []
    for step in range(5):
        before = copies(trainer)
        taken.append(trainer.step(batch(step)))
        after = copies(trainer)
        same = len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert same == (step == 2)
    assert [x.bad for x in taken] == [0, 0, 1, 0, 0]
    assert taken[2].skipped.startswith("not finite")
    assert not taken[3].skipped


@pytest.mark.parametrize("deferred", [True, False])
def test_a_spike_of_the_gradient_is_left_out(deferred):
    """Above ten times the 90th percentile of the good norms, once sixteen are known; before, nothing is a spike."""

    class Spiked:
        def __init__(self, at):
            self.calls, self.at, self.inner = 0, at, NextToken()

        def __call__(self, model, given):
            loss = self.inner(model, given)
            self.calls += 1
            return replace(loss, minimised=loss.minimised * (1e4 if self.calls - 1 in self.at else 1))

    trainer = trainer_of(deferred, steps=40, objective=Spiked((3, 20, 22)))
    taken = [trainer.step(batch(step)) for step in range(25)]
    assert [i for i, x in enumerate(taken) if x.bad] == [20, 22]
    assert taken[20].skipped.startswith("a spike of the gradient")
    again = trainer_of(deferred, steps=40)
    again.guard.resume(json.loads(json.dumps(trainer.guard.to_dict())))
    assert again.guard.to_dict() == trainer.guard.to_dict()


def test_norms_that_vary_widely_are_no_spikes():
    """Gradient norms of small batches, as measured while a model learnt: three high ones in a row are good."""
    usual = [0.7, 1.0, 0.5, 1.2, 0.8, 4.3, 0.6, 2.4, 0.9, 1.4] * 7
    guard = Guard(10.0, torch.device("cpu"))
    norms = [*usual, 13.7, 14.6, 15.3, 0.8, 60.0]
    bad = [int(guard.judge(torch.tensor(1.0), torch.tensor(norm))) for norm in norms]
    assert bad == [0] * (len(norms) - 1) + [1]


@pytest.mark.parametrize("look", ["loss", "settle", "write"])
def test_whoever_looks_at_a_spoilt_step_is_told(look, tmp_path):
    trainer = trainer_of(True, objective=Spoilt(0, "loss"))
    taken = [trainer.step(batch(i)) for i in range(3)][-1]
    looks = {"loss": lambda: taken.loss, "settle": trainer.settle, "write": lambda: trainer.write(tmp_path / "x")}
    with pytest.raises(Diverged, match="^step 3: "):
        looks[look]()
    assert not (tmp_path / "x").exists()


def test_no_step_reads_a_number_from_its_device(monkeypatch):
    """Tensors of the CPU stand for those of a GPU: nothing asks them for a number between enqueueing and reading."""
    trainer = trainer_of(True)
    batches = [batch(i) for i in range(3)]
    trainer.step(batches[0])
    trainer._last = None  # its results are not read either

    def never(self, *_):
        raise AssertionError("the host waits for the device")

    monkeypatch.setattr("interlace.train.objectives.next_token.few", lambda _: False)
    monkeypatch.setattr("interlace.model.model.HybridLM.check_tokens", lambda *_: None)
    for name in ("item", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, never)
    count = torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda x: never(x) if x.is_floating_point() else count(x))
    loss = trainer.objective(trainer.model, batches[1])
    loss.value.detach()
    norm = torch.tensor(1.0)
    trainer._enqueued(loss, norm, trainer.guard.judge(loss.value, norm), 1e-3, (None, 0.0))


def test_a_run_of_enqueued_steps_logs_and_resumes_as_any_other(recipe, tmp_path, monkeypatch):
    """Each line once and in order; a run that stops goes on with the same lines and weights."""
    recipe["train"]["tokens"] = 10 * 192
    plan = validate(Recipe, recipe, "")
    monkeypatch.setattr(Trainer, "deferred", property(lambda _: True))

    def rows(run):
        timing = ("seconds", "tokens_per_second", "flops_utilisation", "peak_memory_bytes")
        return [{k: v for k, v in m.items() if k not in timing} for m in run.metrics()]

    whole = loop.train(plan, tmp_path / "whole", scored)
    assert [m["step"] for m in rows(whole)] == list(range(1, 11))

    class Stopped(Exception):
        pass

    def stop(now):
        if now.label == "training" and now.done == 6:
            raise Stopped

    with pytest.raises(Stopped):
        loop.train(plan, tmp_path / "run", scored, stop)
    run = loop.train(plan, tmp_path / "run", scored)
    assert rows(run) == rows(whole)
    weights = [r.checkpoints()[-1] / "model.safetensors" for r in (run, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_divergence_of_enqueued_steps_follows_the_last_good_line(recipe, tmp_path, monkeypatch):
    recipe["train"] |= {"tokens": 10 * 192, "checkpoints": 1, "evaluations": 1}
    plan = validate(Recipe, recipe, "")
    monkeypatch.setattr(Trainer, "deferred", property(lambda _: True))
    made = Trainer.of

    def spoilt(*arguments, **named):
        trainer = made(*arguments, **named)
        trainer.objective = Spoilt(4, "loss")
        return trainer

    monkeypatch.setattr(Trainer, "of", spoilt)
    with pytest.raises(Diverged, match="^step 7: "):
        loop.train(plan, tmp_path / "run", scored)
    run = TrainingRun(tmp_path / "run")
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [m["step"] for m in lines] == [1, 2, 3, 4, 5, 6, 6]
    assert [name for m in lines for name in ("skipped", "diverged") if name in m] == ["skipped"] * 2 + ["diverged"]
    assert run.check_log() == 6
    kept = read_header(tmp_path / "run/stopped/step-7.safetensors")
    assert kept["tokens"].shape == (192,)


def test_batches_are_made_one_step_ahead_and_are_those_of_their_steps():
    asked, given = [], []

    def make(step):
        asked.append(step)
        return [batch(step)]

    ahead = Ahead(make, torch.device("cpu"), early=True)
    for step in (3, 4, 5, 9):  # a run that resumes, and one that jumps
        given.append(ahead(step))
        ahead.prepare(step + 1)
    assert asked == [3, 4, 5, 6, 9, 10]
    for step, one in zip((3, 4, 5, 9), given, strict=True):
        assert torch.equal(one[0].tokens, batch(step).tokens)


def test_on_a_cpu_no_batch_is_asked_for_ahead():
    asked = []

    def make(step):
        asked.append(step)
        return batch(step)

    trainer = trainer_of(False, steps=3)
    take_steps([trainer], make, lambda t, _: asked.append(f"after {t.done}"))
    assert asked == [0, "after 1", 1, "after 2", 2, "after 3"]


def test_on_a_gpu_the_next_batch_is_made_once_a_step_is_enqueued(monkeypatch):
    monkeypatch.setattr("interlace.train.steps.Ahead", partial(Ahead, early=True))
    asked = []

    def make(step):
        asked.append(step)
        return batch(step)

    take_steps([trainer_of(True, steps=3)], make, lambda t, _: asked.append(f"after {t.done}"))
    assert asked == [0, 1, "after 1", 2, "after 2", "after 3"]


def test_a_large_loss_and_a_large_gradient_are_finite():
    """Their sum is not, in float32."""
    largest = torch.tensor(3e38)
    assert not trainer_of(True).guard.judge(largest, largest)


def test_targets_that_are_few_are_known():
    one = batch(0)
    assert not few(one.targets)
    kept = torch.arange(32) < 15
    assert few(replace(one, targets=torch.where(kept, one.targets, -100)).targets)


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-kimi"])
def test_positions_of_a_device_are_those_of_the_segments(name):
    from interlace.ops.core.tables import positions

    for segments in (Segments.from_lengths([3, 1, 7]), Segments.equal(3, 5)):
        found = positions(segments.offsets, torch.device("cpu"))
        assert torch.equal(found, segments.positions())
        assert positions(segments.offsets, torch.device("cpu")) is found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["tiny-hybrid-rope", "tiny-kimi", "tiny-nemotron", "tiny-mamba"])
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_on_a_gpu_the_host_waits_for_no_step(name, recompute):
    """Once kernels are compiled and checked; torch raises where a call waits for the device."""
    model = interlace.HybridLM(preset(name).replace(vocabulary=64), device="cuda")
    settings = TrainSettings(tokens=1, learning_rate=1e-3, recompute=recompute)
    trainer = Trainer.of(model, settings, 8, "bfloat16")
    ahead = Ahead(batch, model.device)
    assert trainer.deferred
    for step in range(6):
        if step == 3:
            trainer.settle()
            trainer._last = None
            torch.cuda.set_sync_debug_mode("error")
        try:
            given = ahead(step)
            taken = trainer.step(given)
            ahead.prepare(step + 1)
        finally:
            if step == 5:
                torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(taken.loss)
    assert taken.seconds > 0
