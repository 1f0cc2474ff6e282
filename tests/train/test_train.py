"""Training: the loss is right, resuming is exact, and bad recipes are refused before anything is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from watching import at

import interlace
from interlace.base.errors import ConfigError, Diverged, Failure, RunError
from interlace.base.schema import validate
from interlace.data.batches import IGNORE
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.evaluate.training import train_in_stages
from interlace.runs.checkpoints import is_whole
from interlace.runs.training import TrainingRun
from interlace.train.estimate import activation_bytes, estimate
from interlace.train.loop import train
from interlace.train.objectives.next_token import next_token_loss
from interlace.train.optimizer import parameter_groups
from interlace.train.recipe import Recipe, read_recipe
from interlace.train.schedule import warmup_stable_decay


def score(recipe):
    return lambda corpus: HeldOut(corpus, recipe.data.length, 960).score


def weights(run: TrainingRun) -> bytes:
    return (run.checkpoints()[-1] / "model.safetensors").read_bytes()


def test_training_learns_and_leaves_a_whole_run(recipe, tmp_path):
    plan = validate(Recipe, recipe, "")
    run = train(plan, tmp_path / "run", score(plan))
    rows = list(run.metrics())
    scores = [m["held_out_bits_per_byte"] for m in rows if "held_out_bits_per_byte" in m]
    assert [m["step"] for m in rows] == list(range(1, 21))
    assert scores[-1] < scores[0] - 0.3
    assert len(run.checkpoints()) == 2
    assert all(is_whole(c) for c in run.checkpoints())
    model = interlace.load(tmp_path / "run")
    again = HeldOut(interlace.data.tokens.Corpus.open(tmp_path / "run" / "data"), 48, 960).score(model)
    assert again["held_out_bits_per_byte"] == pytest.approx(scores[-1], rel=1e-6)
    assert model.config.tokens.eos == (model.tokenizer.eos,)


WORKER = """
import sys, time, tomllib
from pathlib import Path
import torch
torch.set_num_threads(1)
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.train.loop import train
from interlace.train.recipe import read_recipe
plan = read_recipe(Path(sys.argv[1]))
def watch(now):
    if now.label == "training":
        print(now.detail["step"], flush=True)
train(plan, Path(sys.argv[2]), lambda c: HeldOut(c, plan.data.length, 960).score, watch)
"""


@pytest.mark.slow
def test_killed_at_random_and_resumed_ends_with_the_same_bits(recipe, tmp_path):
    """kill -9 three times, each at another step; weights, optimizer and numbers equal those of an unbroken run."""
    recipe["train"]["tokens"] = 40 * 192
    recipe["train"]["checkpoints"] = 13
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(recipe))
    command = [sys.executable, "-c", WORKER, str(file)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    for kill_at in (int.from_bytes(os.urandom(1), "big") % 10 + 3, 16, 25):
        worker = subprocess.Popen([*command, str(tmp_path / "broken")], stdout=subprocess.PIPE, text=True)
        for line in worker.stdout:
            if int(line) >= kill_at:
                worker.send_signal(signal.SIGKILL)
                break
        worker.stdout.close()
        worker.wait()
        assert worker.returncode == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "broken")], check=True, capture_output=True)
    whole, broken = TrainingRun(tmp_path / "whole"), TrainingRun(tmp_path / "broken")
    assert weights(whole) == weights(broken)
    last = [r.checkpoints()[-1] / "optimizer.safetensors" for r in (whole, broken)]
    assert last[0].read_bytes() == last[1].read_bytes()
    timing = ("seconds", "tokens_per_second", "flops_utilisation", "peak_memory_bytes")
    rows = [[{k: v for k, v in m.items() if k not in timing} for m in r.metrics()] for r in (whole, broken)]
    assert rows[0] == rows[1]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(recipe, tmp_path):
    plan = validate(Recipe, recipe, "")
    run = train(plan, tmp_path / "run", score(plan))
    want, last = weights(run), run.checkpoints()[-1]
    file = last / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert not is_whole(last)
    started = []
    run = train(plan, tmp_path / "run", score(plan), at("starting", lambda now: started.append(now.done)))
    assert started == [16]
    assert weights(run) == want


def test_a_folder_of_another_run_is_refused(recipe, tmp_path):
    plan = validate(Recipe, recipe, "")
    train(plan, tmp_path / "run", score(plan))
    recipe["train"]["learning_rate"] = 0.5
    with pytest.raises(RunError, match=r"train.learning_rate was 0.002 and is now 0.5"):
        train(validate(Recipe, recipe, ""), tmp_path / "run", score(plan))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not a run folder"):
        train(plan, tmp_path / "other", score(plan))


def test_a_full_disk_keeps_the_previous_checkpoint(recipe, tmp_path, monkeypatch):
    import errno

    from interlace.train import saved

    plan = validate(Recipe, recipe, "")
    real, calls = saved.write, []

    def fills_up(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(saved, "write", fills_up)
    with pytest.raises(Failure, match="the disk is full"):
        train(plan, tmp_path / "run", score(plan))
    run = TrainingRun(tmp_path / "run")
    assert [c.name for c in run.checkpoints()] == ["step-4", "step-8"]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))
    monkeypatch.setattr(saved, "write", real)
    assert weights(train(plan, tmp_path / "run", score(plan))) == weights(train(plan, tmp_path / "new", score(plan)))


def test_divergence_is_a_plain_sentence(recipe, tmp_path):
    recipe["train"] |= {"learning_rate": 1e30, "warmup": 0.0}
    plan = validate(Recipe, recipe, "")
    with pytest.raises(Failure, match=r"diverged; lower train\.learning_rate"):
        train(plan, tmp_path / "run", score(plan))


def test_bfloat16_keeps_float32_master_weights_and_learns_alike(recipe, tmp_path):
    """The same run in both precisions: losses agree to what bfloat16 rounds (4e-3 per product)."""
    losses = []
    for precision in ("float32", "bfloat16"):
        recipe["train"]["precision"] = precision
        plan = validate(Recipe, recipe, "")
        run = train(plan, tmp_path / precision, score(plan))
        losses.append([m["loss"] for m in run.metrics()])
        assert interlace.load(tmp_path / precision).dtype == torch.float32
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labelled", [0.9, 0.1])
def test_loss_and_gradients_equal_cross_entropy(labelled, weighted):
    hidden = torch.randn(2500, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (2500,)).where(torch.rand(2500) < labelled, IGNORE)
    weights = torch.rand(2500) if weighted else None
    found = next_token_loss(hidden, weight, targets, weights=weights)
    shares = torch.ones(2500) if weights is None else weights
    shares = torch.where(targets == IGNORE, 0.0, shares).double()
    each = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="none")
    want = (each * shares).sum() / shares.sum()
    torch.testing.assert_close(found.double(), want, rtol=1e-6, atol=0)
    for a, b in zip(
        torch.autograd.grad(3 * found, (hidden, weight)), torch.autograd.grad(3 * want, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)  # the softmax is float32, whatever the rest is


def test_bits_per_byte_of_a_uniform_model(recipe, tmp_path):
    """A head of zeros gives log2(vocabulary) bits to each token."""
    plan = validate(Recipe, {**recipe, "train": {**recipe["train"], "tokens": 192}}, "")
    train(plan, tmp_path / "run", score(plan))
    corpus = interlace.data.tokens.Corpus.open(tmp_path / "run" / "data")
    model = interlace.load(tmp_path / "run")
    with torch.no_grad():
        model.head.weight.zero_()
    held = HeldOut(corpus, 48, 960)
    targets = torch.cat([b.targets for b in held.batches])
    lengths = corpus.tokenizer.byte_lengths()
    scored = targets[(targets != IGNORE) & (targets != corpus.tokenizer.eos)]
    want = torch.log2(torch.tensor(300.0)) * len(scored) / lengths[scored].sum()
    assert held.score(model)["held_out_bits_per_byte"] == pytest.approx(float(want), rel=1e-6)


def test_schedule_rises_stays_and_falls():
    factors = [warmup_stable_decay(s, 100, 0.1, 0.2) for s in range(100)]
    assert factors[0] == 0.1
    assert factors[9:80] == [1.0] * 71
    assert factors[-1] == pytest.approx(1 / 21)
    assert factors[80:] == sorted(factors[80:], reverse=True)


def test_schedule_with_horizons_falls_to_each_and_is_taken_up_again():
    factors = [warmup_stable_decay(s, 80, 0.2, 0.25, (0.25, 0.5)) for s in range(80)]
    assert factors[:20] == [warmup_stable_decay(s, 20, 0.2, 0.25) for s in range(20)]
    assert factors[20:30] == [1.0] * 10
    assert factors[30:40] == pytest.approx([(11 - i) / 11 for i in range(1, 11)], abs=0.1)
    assert factors[39] == pytest.approx(1 / 11)
    assert factors[40:60] == [1.0] * 20
    assert factors[-1] == pytest.approx(1 / 21)
    close = [warmup_stable_decay(s, 10, 0.0, 0.9, (0.8,)) for s in range(10)]
    assert close[8:] == pytest.approx([2 / 3, 1 / 3])  # no longer a decay than there is room for


def test_the_first_horizon_of_a_long_run_is_the_end_of_a_short_one(recipe, tmp_path):
    short = validate(Recipe, recipe, "")
    recipe["train"] |= {"tokens": 3 * recipe["train"]["tokens"], "horizons": [1 / 3]}
    long = validate(Recipe, recipe, "")
    end = list(train(short, tmp_path / "short", score(short)).metrics())[-1]
    rows = [m for m in train(long, tmp_path / "long", score(long)).metrics() if "horizon" in m]
    assert [m["step"] for m in rows] == [20, 60]
    assert rows[0]["held_out_loss"] == end["held_out_loss"]
    assert rows[1]["held_out_loss"] < rows[0]["held_out_loss"]


def test_a_run_killed_between_a_checkpoint_and_its_line_writes_that_line(recipe, tmp_path):
    plan = validate(Recipe, recipe, "")
    run = train(plan, tmp_path / "run", score(plan))
    lines = run.metrics_file.read_text().splitlines()
    run.metrics_file.write_text("\n".join(lines[:-1]) + "\n")
    started = []
    run = train(plan, tmp_path / "run", score(plan), at("starting", lambda now: started.append(now.done)))
    assert started == [16]
    timing = ("seconds", "tokens_per_second", "flops_utilisation", "peak_memory_bytes")
    again, before = (
        [{k: v for k, v in json.loads(m).items() if k not in timing} for m in x]
        for x in (run.metrics_file.read_text().splitlines(), lines)
    )
    assert again == before


def test_a_divergence_is_in_the_log(recipe, tmp_path):
    recipe["train"] |= {"learning_rate": 1e30}
    plan = validate(Recipe, recipe, "")
    with pytest.raises(Diverged, match="training has diverged"):
        train(plan, tmp_path / "run", score(plan))
    assert "training has diverged" in list(TrainingRun(tmp_path / "run").metrics())[-1]["diverged"]


@pytest.mark.parametrize("horizons", [[0.5, 0.25], [0.0], [1.0], [0.5, 0.5]])
def test_bad_horizons_are_named(recipe, horizons):
    recipe["train"]["horizons"] = horizons
    with pytest.raises(ConfigError, match=r"train.horizons.*between 0 and 1, rising"):
        validate(Recipe, recipe, "")


def test_every_parameter_is_in_one_group(recipe):
    model = interlace.HybridLM(validate(Recipe, recipe, "").model)
    groups = parameter_groups(model, 0.1)
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    free = {id(p) for p in groups[1]["params"]}
    mixer = model.blocks[0].mixer
    assert {id(p) for p in (mixer.A_log, mixer.dt_bias, mixer.convolution, model.embedding.weight)} <= free
    assert id(mixer.query.weight) not in free


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.tokns=3", "train.tokns: unknown key; did you mean 'tokens'?"),
        ("train.tokens=many", "train.tokens: input should be a valid integer, got 'many'"),
        ("train.tokens=2.5", "train.tokens"),
        ("model.width=33", "attention.heads: 2 does not divide the model's width 33"),
        ("model.pattern=['gated_delta','atention']", "no layer kind is called 'atention'; did you mean 'attention'?"),
        ("model.pattern=[]", "model.pattern"),
        ("model.gated_delta.value_heads=3", "value_heads: 3 is not a multiple of heads = 2"),
        ("model.gated_delta.heads=2.5", "model: gated_delta.heads: input should be a valid integer"),
        ("model.gated_delta.hads=2", "gated_delta.hads: unknown key; did you mean 'heads'?"),
        ("model.attention.qk_norm=both", "attention.qk_norm"),
        ("model.rwkv.heads=2", "no layer kind is called 'rwkv'"),
        ("data.rows=0", "data.rows"),
        ("optimizer.name=x", "optimizer: unknown key"),
        ("nonsense", "dotted.key=value"),
        ("train.tokens.more=1", "not a table"),
    ],
)
def test_bad_recipes_are_one_sentence(recipe, tmp_path, override, words):
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path / "r.toml", [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_and_data_that_do_not_fit(recipe, tmp_path):
    recipe["model"]["vocabulary"] = 200
    plan = validate(Recipe, recipe, "")
    with pytest.raises(ConfigError, match=r"model.vocabulary: is 200, but the tokenizer has 300"):
        train(plan, tmp_path / "a", score(plan))
    recipe["model"] |= {"vocabulary": 300, "max_positions": 40}
    plan = validate(Recipe, recipe, "")
    with pytest.raises(ConfigError, match=r"data.length: 48 is past"):
        train(plan, tmp_path / "b", score(plan))


def test_estimate_counts_what_autograd_keeps(recipe):
    plan = validate(Recipe, recipe, "")
    predicted = activation_bytes(plan.model, 4, 48)
    model = interlace.HybridLM(plan.model)
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in own and x.numel() > 8:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model.hidden(torch.zeros(4, 48, dtype=torch.int64))
    assert sum(kept.values()) == pytest.approx(
        predicted, rel=0.2
    )  # fused attention keeps less than the meta device says
    del out
    cost = estimate(plan)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.steps == 20
    assert cost.seconds > 0


@pytest.mark.slow
def test_every_recipe_trains(tmp_path, texts):
    """Each recipe of the repository, shortened and narrowed."""
    folder = Path(__file__).parents[2] / "recipes"
    files = sorted(f for f in folder.glob("*.toml") if "[ladder]" not in f.read_text())  # those: tests/study
    assert files
    for file in files:
        short = [
            f"data.source={texts}",
            "data.tokenizer=train:300",
            "data.length=64",
            "data.rows=2",
            "train.tokens=256",
            "train.evaluations=1",
            "train.evaluation_tokens=128",
        ]
        stages = re.findall(r'(?s)\[\[stage\]\]\nname = "(\w+)"', file.read_text())
        for name in stages:
            short += [f"stage.{name}.train.tokens=256", f"stage.{name}.train.compile=false"]
            short += [f"stage.{name}.data={{source = '{texts}', length = 64, rows = 2}}"]
        if file.stem.endswith("7b"):
            small = {"width": 64, "depth": 4, "vocabulary": 512, "gated_delta.heads": 2, "gated_delta.key_dim": 24}
            small |= {"gated_delta.value_dim": 48, "attention.heads": 2, "mlp.width": 96}
            short += [f"model.{key}={value}" for key, value in small.items()]
        plan = read_recipe(file, short)
        run = train_in_stages(plan, tmp_path / file.stem)
        assert len(list(run.metrics())) == 2
        assert run.path == tmp_path / file.stem / (stages[-1] if stages else "")
