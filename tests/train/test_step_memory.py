"""The predicted memory of a training step, beside what a step takes; and what is said where it does not suffice."""

from __future__ import annotations

import pytest
import torch

import interlace
from interlace.base.errors import Failure
from interlace.base.schema import validate
from interlace.base.segments import Segments
from interlace.data.batches import Batch
from interlace.model.memory import Alive
from interlace.model.presets import preset
from interlace.runs.training import TrainingRun
from interlace.train.blocks import through
from interlace.train.gauge import Gauge
from interlace.train.loop import train
from interlace.train.memory import changes, footprint, out_of_memory
from interlace.train.objectives.next_token import NextToken
from interlace.train.recipe import Recipe
from interlace.train.trainer import Trainer

CPU = torch.device("cpu")
ROWS, LENGTH = 3, 64
NAMES = ["tiny-hybrid", "tiny-hybrid-rope", "tiny-kimi", "tiny-nemotron", "tiny-granite", "tiny-gated-attention"]


def batch(vocabulary):
    tokens = torch.randint(vocabulary, (ROWS * LENGTH,))
    return Batch(tokens, tokens.roll(-1), Segments.equal(ROWS, LENGTH))


@pytest.mark.parametrize("name", NAMES)
def test_predicted_activations_are_those_that_autograd_keeps(name):
    config = preset(name)
    model = interlace.HybridLM(config).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own and x.numel() > 8:  # borders of sequences
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    given = batch(config.vocabulary)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.hidden(given.tokens, given.segments)
    predicted = footprint(config, LENGTH, CPU).step(ROWS * LENGTH).activations
    assert predicted == pytest.approx(sum(kept.values()), rel=0.1)


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("name", NAMES)
def test_the_predicted_peak_is_that_of_a_step(name, recompute):
    """Within 10 %: a block's working memory is taken from the block that needs most."""
    config = preset(name)
    model = interlace.HybridLM(config).train()
    model.through = through(False, recompute)
    given = batch(config.vocabulary)
    with Alive(model.parameters()) as alive:
        NextToken()(model, given).minimised.backward()
    step = footprint(config, LENGTH, CPU).step(ROWS * LENGTH, recompute)
    assert step.peak - step.weights == pytest.approx(alive.peak, rel=0.1)


def test_memory_falls_with_rows_with_length_and_by_recomputing():
    parts = footprint(preset("tiny-hybrid"), LENGTH, CPU)
    plain, again, half = parts.step(8 * LENGTH), parts.step(8 * LENGTH, "block"), parts.step(4 * LENGTH)
    assert again.activations < plain.activations / 4
    assert again.peak < half.peak < plain.peak
    assert plain.weights == again.weights == half.weights


SAID = (
    "CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 79.19 GiB of which {free} is free. "
    "Process 7 has 60.50 GiB memory in use. Of the allocated memory {held} is allocated by PyTorch, and 512.00 MiB is "
    "reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting x."
)


@pytest.fixture
def large(recipe):
    recipe["data"] |= {"rows": 64, "length": 2048}
    recipe["model"] |= {"width": 512, "depth": 8, "vocabulary": 32_000}
    return recipe


def test_out_of_memory_names_what_would_fit(large):
    plan = validate(Recipe, large, "")
    parts = footprint(plan.model, 2048, CPU)
    peak = parts.step(64 * 2048).peak
    held = f"{0.6 * peak / (1 << 30):.2f} GiB"
    message = out_of_memory(plan, SAID.format(asked="2.50 GiB", free="1.25 GiB", held=held), parts)
    assert "2.5 GiB were asked for" in message
    assert "1.25 GiB of 79.2 GiB were free" in message
    assert "data.rows = 64, data.length = 2048" in message
    assert "would fit by the prediction" in message
    for change in ('train.recompute = "block"', "data.rows = 32", "data.length = 1024"):
        assert change in message
    assert "\n" not in message


def test_out_of_memory_proposes_only_what_fits(large):
    plan = validate(Recipe, large, "")
    parts = footprint(plan.model, 2048, CPU)
    quarter = parts.step(16 * 2048).peak
    found = dict(changes(plan, parts, quarter))
    assert {"data.rows = 16", "data.length = 512"} <= set(found)
    assert all(size <= quarter for size in found.values())
    assert changes(plan, parts, parts.step(1).weights) == []
    message = out_of_memory(plan, SAID.format(asked="2.50 GiB", free="0 bytes", held="4.00 MiB"), parts)
    assert "make the model smaller" in message
    large["train"]["recompute"] = "block"
    again = validate(Recipe, large, "")
    assert all("recompute" not in change for change, _ in changes(again, parts, None))


def test_a_message_of_another_form_is_no_riddle(large):
    plan = validate(Recipe, large, "")
    message = out_of_memory(plan, "HIP ran out", footprint(plan.model, 2048, CPU))
    assert "is predicted to take" in message
    assert "data.rows = 32" in message


def test_a_run_that_has_too_little_memory_says_so(recipe, tmp_path, monkeypatch):
    def step(*_):
        raise torch.OutOfMemoryError(SAID.format(asked="2.00 GiB", free="1.00 GiB", held="70.00 GiB"))

    monkeypatch.setattr(Trainer, "step", step)
    plan = validate(Recipe, recipe, "")
    with pytest.raises(Failure, match=r'^out of memory: 2 GiB were asked for.*train\.recompute = "block"'):
        train(plan, tmp_path / "run", lambda _: lambda _: {})


def test_a_run_on_a_gpu_logs_the_share_of_its_rate(recipe, tmp_path, monkeypatch):
    """The measures of a GPU, with numbers that stand for it."""
    plan = validate(Recipe, recipe, "")
    parts = footprint(plan.model, 48, CPU)
    fake = Gauge(CPU, 1000.0, 4e6, parts, 12_345)
    monkeypatch.setattr(Gauge, "of", lambda *_: fake)
    monkeypatch.setattr(Gauge, "used_bytes", 6789)
    run = train(plan, tmp_path / "run", lambda _: lambda _: {})
    for row in run.metrics():
        assert row["flops_utilisation"] == pytest.approx(1000 * row["tokens_per_second"] / 4e6)
        assert row["peak_memory_bytes"] == 6789
    machine = TrainingRun(run.path).tables()["machine"]
    assert machine["predicted_memory_bytes"] == 12_345
    assert machine["matmul_flops_per_second"] == 4e6


def test_of_a_cpu_the_rate_is_measured_and_no_memory_predicted(recipe):
    gauge = Gauge.of(validate(Recipe, recipe, ""), "cpu")
    assert gauge.footprint is None
    assert gauge.facts().keys() == {"matmul_flops_per_second"}
    row = gauge.row(1e3)
    assert row["flops_utilisation"] == pytest.approx(1e3 * gauge.flops_per_token / gauge.flops_per_second)
    assert row["peak_memory_bytes"] > 100 << 20


def test_a_dry_run_predicts_the_peak(recipe, tmp_path, capsys):
    import json

    import tomli_w

    from interlace.cli.main import run

    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    command = ["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run"), "--dry-run"]
    assert run([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert run([*command, "--json", "train.recompute=block"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert plain["peak_memory_bytes_with_recompute"] == again["peak_memory_bytes"] < plain["peak_memory_bytes"]
    assert run(command) == 0
    assert "most at once" in capsys.readouterr().out
