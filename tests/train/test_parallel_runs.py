"""Runs of several workers: killed, gone on with by another number, damaged, and workers that disagree or die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import tomli_w
import torch

import interlace
from interlace.base.schema import validate
from interlace.cli.main import run as verb
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.train.loop import train
from interlace.train.recipe import Recipe

STEPS = 16


@pytest.fixture
def plan(texts, tmp_path):
    """A recipe's file: a run of sixteen steps, whose optimizer is Muon and whose weights are averaged."""
    prepare(Sources([texts]), "train:300", tmp_path / "data")
    model = {
        "width": 32,
        "depth": 3,
        "vocabulary": 300,
        "pattern": ["gated_delta", "mamba2", "attention"],
        "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
        "mamba2": {"heads": 2, "head_dim": 16, "state_dim": 6},
        "attention": {"heads": 2, "norm": "output", "position": "none"},
        "mlp": {"width": 48},
    }
    settings = {
        "tokens": STEPS * 192,
        "optimizer": "muon",
        "average": 0.9,
        "precision": "float32",
        "evaluations": 2,
        "evaluation_tokens": 480,
        "checkpoints": 8,
    }
    data = {"source": str(tmp_path / "data"), "length": 48, "rows": 4}
    file = tmp_path / "plan.toml"
    file.write_text(tomli_w.dumps({"model": model, "data": data, "train": settings}))
    return file


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def start(plan, out, *more, workers=2, others=()):
    """The processes of a run; `others` are words that only the last worker is given."""
    port, found = free_port(), []
    for rank in range(workers):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "MASTER_PORT": port}
        environment = os.environ | {k: str(v) for k, v in world.items()} | {"MASTER_ADDR": "127.0.0.1"}
        words = [*more, *(others if rank == workers - 1 else ())]
        command = [sys.executable, "-m", "interlace", "train", str(plan), "--out", str(out), *words]
        found.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return found


def ended(processes):
    """(exit code, what it said) of each."""
    return [(p.wait(), err) for p, (_, err) in ((p, p.communicate(timeout=100)) for p in processes)]


def lines(out):
    file = out / "metrics.jsonl"
    return [json.loads(x) for x in file.read_text().splitlines()] if file.is_file() else []


def kill_after(processes, out, step):
    """End all by SIGKILL once a step was logged."""
    while len(lines(out)) < step and all(p.poll() is None for p in processes):
        time.sleep(0.01)
    for p in processes:
        p.send_signal(signal.SIGKILL)
    ended(processes)


def weights(out):
    return dict(interlace.load(out / f"checkpoints/step-{STEPS}").named_parameters())


@pytest.mark.slow
def test_two_workers_one_and_two_again(plan, tmp_path):
    """Killed between: losses and weights are those of one worker that was never killed (float32: 1e-6)."""
    assert verb(["train", str(plan), "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "run"
    kill_after(start(plan, out, "parallel.shard=2"), out, 6)
    assert (out / "checkpoints/step-4/state").is_dir()
    kill_after(start(plan, out, workers=1), out, 11)
    assert (out / "checkpoints/step-8/model.safetensors").is_file()
    assert [code for code, _ in ended(start(plan, out, "parallel.tensor=2"))] == [0, 0]
    for a, b in zip(lines(out), lines(tmp_path / "whole"), strict=True):
        assert a["step"] == b["step"]
        for name in ("loss", "held_out_bits_per_byte", "average_held_out_bits_per_byte"):
            assert (name in a) == (name in b)
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), rel=1e-6)
    for one, other in ((out, tmp_path / "whole"),):
        for name, p in weights(one).items():
            torch.testing.assert_close(p, weights(other)[name], rtol=1e-5, atol=1e-6)
    kept = interlace.load(out / f"checkpoints/step-{STEPS}/average")
    assert kept.tokenizer.hash() == interlace.load(out).tokenizer.hash()


@pytest.mark.slow
def test_stages_of_two_workers_are_those_of_one(plan, tmp_path):
    """Each stage lays them out otherwise; a frozen part stays, and attention loses its rope."""
    changes = {"attention": {"heads": 2, "norm": "output", "position": "rope"}}
    stages = [
        {"name": "first", "train": {"tokens": 6 * 192}},
        {"name": "frozen", "train": {"tokens": 4 * 192, "freeze": ["mamba2"]}, "parallel": {"shard": 1, "tensor": 2}},
        {
            "name": "long",
            "model": {"attention": {"position": "none"}},
            "data": {"length": 96, "rows": 1},
            "train": {"tokens": 4 * 96},
            "parallel": {"shard": 1, "context": 2},
        },
    ]
    recipe = {**_toml(plan), "stage": stages}
    recipe["model"] |= changes
    plan.write_text(tomli_w.dumps(recipe))
    assert [code for code, _ in ended(start(plan, tmp_path / "two", "parallel.shard=2"))] == [0, 0]
    plan.write_text(tomli_w.dumps(recipe | {"stage": [{**stage, "parallel": {}} for stage in stages]}))
    assert verb(["train", str(plan), "--out", str(tmp_path / "one")]) == 0
    for stage in ("first", "frozen", "long"):
        for a, b in zip(lines(tmp_path / "two" / stage), lines(tmp_path / "one" / stage), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        found, alone = (dict(interlace.load(tmp_path / n / stage).named_parameters()) for n in ("two", "one"))
        for name, p in alone.items():
            torch.testing.assert_close(found[name], p, rtol=1e-5, atol=1e-5)
    assert verb(["train", str(plan), "--out", str(tmp_path / "two")]) == 0  # one worker finds all of it done


@pytest.mark.slow
def test_damage_to_what_several_workers_wrote_is_found(plan, tmp_path, caplog):
    out = tmp_path / "run"
    kill_after(start(plan, out, "parallel.shard=2"), out, 9)
    steps = sorted((out / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    newest, before = steps[-1], steps[-2]
    shard = sorted((newest / "state").iterdir())[0]
    raw = shard.read_bytes()
    settings = validate(Recipe, {**_toml(plan)}, "")
    for harm in (
        lambda: shard.unlink(),
        lambda: shard.write_bytes(raw[:-100]),
        lambda: shard.write_bytes(raw[:-50] + bytes([raw[-50] ^ 1]) + raw[-49:]),
    ):
        harm()
        copy = tmp_path / "copy"
        shutil.copytree(out, copy)
        began = []

        class Stop(Exception):
            pass

        def watch(now, began=began, stop=Stop):
            if now.label == "starting":
                began.append(now.done)
                raise stop

        caplog.clear()
        with pytest.raises(Stop):
            train(settings, copy, lambda _: dict, watch)
        assert began == [int(before.name[5:])]
        assert f"{newest.name} is damaged" in caplog.text
        assert f"going on from {before.name}" in caplog.text
        shutil.rmtree(copy)
        shard.write_bytes(raw)


def _toml(file):
    import tomllib

    found = tomllib.loads(file.read_text())
    found["data"]["source"] = [found["data"]["source"]]
    return found


@pytest.mark.slow
def test_a_worker_that_dies_is_named(plan, tmp_path):
    out = tmp_path / "run"
    processes = start(plan, out, "parallel.shard=2", "train.tokens=2_000_000")
    while not lines(out) and all(p.poll() is None for p in processes):
        time.sleep(0.05)
    began = time.monotonic()
    processes[1].send_signal(signal.SIGKILL)
    code, said = ended(processes)[0]
    assert time.monotonic() - began < 60
    assert code == 1
    assert "worker 1 (" in said
    assert "has stopped: no heartbeat" in said


@pytest.mark.slow
def test_workers_that_were_given_different_recipes_say_so(plan, tmp_path):
    out = tmp_path / "run"
    found = ended(start(plan, out, "parallel.shard=2", others=["train.seed=1"]))
    assert [code for code, _ in found] == [2, 2]
    assert "worker 1: has another recipe than worker 0" in found[0][1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["parallel.shard=2"],
            "made for 2 workers, but there is 1; start as many with torchrun --nproc-per-node 2",
        ),
        (["parallel.shard=0"], "parallel.shard: must be a number of workers from 1 on"),
        (
            ["--allow-changes", "train.token"],
            "there is no key 'train.token' in the recipe; did you mean 'train.tokens'",
        ),
        (["parallel.shards=2"], "did you mean 'shard'?"),
    ],
)
def test_workers_that_do_not_fit_are_refused(plan, tmp_path, capsys, words, said):
    assert verb(["train", str(plan), "--out", str(tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "workers", "said"),
    [
        (["parallel.shard=3"], 3, "data.rows: 4 cannot be divided among replicate 1 x shard 3 workers"),
        (["parallel.tensor=4"], 4, "model.gated_delta.heads: 2 cannot be divided among parallel.tensor = 4 workers"),
        (["parallel.context=4", "parallel.context_by=heads"], 4, "2 heads of values and 2 of keys cannot be traded"),
        (["parallel.replicate=3", "parallel.shard=auto"], 4, "made for a multiple of 3 workers, but there are 4"),
        (["train.accumulate=4", "parallel.shard=2"], 2, "in 4 parts each (train.accumulate); make it a multiple of 8"),
    ],
)
def test_sizes_that_do_not_divide_name_both(plan, tmp_path, capsys, monkeypatch, words, workers, said):
    monkeypatch.setenv("WORLD_SIZE", str(workers))
    assert verb(["train", str(plan), "--out", str(tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_that_was_changed_lists_what_differs(plan, tmp_path, capsys):
    out = tmp_path / "run"
    few = ["train.evaluations=1", "train.checkpoints=2"]
    assert verb(["train", str(plan), "--out", str(out), *few, "train.tokens=1536"]) == 0
    capsys.readouterr()
    changed = ["train", str(plan), "--out", str(out), *few, "train.tokens=1920", "train.learning_rate=1e-3"]
    assert verb(changed) == 2
    said = capsys.readouterr().err
    assert "train.tokens was 1536 and is now 1920, train.learning_rate was 0.002 and is now 0.001" in said
    assert "--allow-changes train.tokens,train.learning_rate" in said
    assert verb([*changed, "--allow-changes", "train.tokens"]) == 2
    assert "train.learning_rate was" in capsys.readouterr().err
    assert verb([*changed, "--allow-changes", "train.tokens,train.learning_rate"]) == 0
    assert len(lines(out)) == 10
    assert verb(changed) == 0  # it is the run's recipe now
    fixed = ["train", str(plan), "--out", str(out), *few, "model.width=64", "--allow-changes", "model"]
    capsys.readouterr()
    assert verb(fixed) == 2
    said = capsys.readouterr().err
    assert "model.width was 32 and is now 64" in said
    assert "--allow-changes" not in said
