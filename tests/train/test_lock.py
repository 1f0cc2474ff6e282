"""One process at a time writes in a folder: a second is refused by the first's process and host, a dead one's place is
taken."""

from __future__ import annotations

import json
import os
import platform
from contextlib import contextmanager

import pytest
import tomli_w
from warm import Warm
from watching import scored

from interlace.base.errors import InterlaceError
from interlace.base.files import write_file
from interlace.base.schema import validate
from interlace.checkpoint.convert import convert
from interlace.cli.main import run as interlace
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokens import Corpus
from interlace.model.model import HybridLM
from interlace.model.presets import preset
from interlace.runs.progress import silent
from interlace.train.loop import train
from interlace.train.recipe import Recipe

HOLD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
def hold(*_):
    global hold_once
    if hold_once:
        hold_once = False
        print("held", flush=True)
        sys.stdin.readline()
hold_once = True
one, out = Path(sys.argv[1]), Path(sys.argv[2])
"""
TRAIN = """
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.train.loop import train
from interlace.train.recipe import read_recipe
plan = read_recipe(one)
def watch(now):
    if now.label == "training" and now.done == 5:
        while not (out / "checkpoints/step-4").is_dir():  # it is written in the background
            pass
        hold()
train(plan, out, lambda c: HeldOut(c, 48, 480).score, watch)
"""
DATA = """
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.train.loop import train
from interlace.train.recipe import read_recipe
train(read_recipe(one), out, lambda c: HeldOut(c, 48, 480).score, hold)
"""
PREPARE = """
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
prepare(Sources([one]), "train:300", out, watch=lambda now: now.label == "encoding" and hold())
"""
CONVERT = """
from interlace.checkpoint.convert import convert
convert(one, out, shard_bytes=20_000, watch=hold)
"""
GRID = """
from interlace.study.tasks.arms import Shape
from interlace.study.tasks.cell import Budget
from interlace.study.tasks.grid import TaskGrid
setting = (Shape(width=16, depth=1, heads=1, mlp=0), Budget(2, 2, (1e-3, 1e-2), evaluations=1, tests=2))
TaskGrid(out, {"parity": setting}, ("transformer",), 1, jobs=1, watch=hold).run()
"""
QUICKSTART = """
from interlace.study.quickstart.run import quickstart
quickstart(1.0, out, one, hold)
"""
LADDER = """
from interlace.study.ladder.plan import read_ladder
from interlace.study.ladder.run import LadderRun
LadderRun(read_ladder(one), out, 1, watch=hold).run("x")
"""
LADDER_TABLE = {
    "ladder": {"multiples": [0.1], "seeds": 1},
    "rate": {"tried": [2e-3]},
    "data": {"tokenizer": "train:300", "length": 32, "rows": 2},
    "train": {"evaluations": 1, "evaluation_tokens": 640, "checkpoints": 1},
    "model": {"vocabulary": 300},
    "sizes": {"a": {"width": 16, "depth": 2, "attention": {"heads": 2}, "mlp": {"width": 48}}},
    "architectures": {"transformer": {"pattern": ["attention"], "attention": {"norm": "output"}}},
}


MODULES = [
    "interlace.evaluate.training",
    "interlace.checkpoint.convert",
    "interlace.study.tasks.grid",
    "interlace.study.quickstart.run",
    "interlace.study.ladder.run",
    "torch._dynamo",  # which torch's optimizers import
]


@pytest.fixture(scope="module")
def warm():
    process = Warm(MODULES)
    yield process
    process.close()


@pytest.fixture
def holding(warm, tmp_path_factory):
    """Starts a process that works in `out` and has stopped in the middle of it; it is killed at the end."""

    @contextmanager
    def hold(script, one, out):
        process = warm.start(HOLD + script, [str(one), str(out)], tmp_path_factory.mktemp("pipes"))
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
            process.wait()
            process.close()

    return hold


def ended(process):
    """Let it go on to its end; its exit status."""
    process.stdin.write("\n")
    process.stdin.flush()
    return process.wait()


def refused(call, process):
    with pytest.raises(InterlaceError) as caught:
        call()
    words = str(caught.value)
    assert caught.value.exit_code == 2
    assert str(process.pid) in words
    assert platform.node() in words
    assert "\n" not in words


@pytest.fixture
def plan(recipe, tmp_path):
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    return validate(Recipe, recipe, "")


def go_on(plan, out):
    return train(plan, out, scored)


def steps(out):
    return [json.loads(x)["step"] for x in (out / "metrics.jsonl").read_text().splitlines()]


def files(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def test_a_second_training_is_refused_and_a_dead_one_s_folder_is_taken_over(holding, plan, tmp_path):
    out = tmp_path / "run"
    with holding(TRAIN, tmp_path / "r.toml", out) as first:
        before = (out / "metrics.jsonl").read_bytes(), (out / "run.toml").read_bytes()
        refused(lambda: go_on(plan, out), first)
        assert ((out / "metrics.jsonl").read_bytes(), (out / "run.toml").read_bytes()) == before
    go_on(plan, out)  # the first was killed
    assert steps(out) == list(range(1, 21))


def test_the_first_goes_on_undisturbed_by_one_that_was_refused(holding, plan, tmp_path):
    with holding(TRAIN, tmp_path / "r.toml", tmp_path / "run") as first:
        refused(lambda: go_on(plan, tmp_path / "run"), first)
        assert ended(first) == 0
    assert steps(tmp_path / "run") == list(range(1, 21))
    again = go_on(plan, tmp_path / "run")  # one that has ended holds nothing
    assert steps(again.path) == list(range(1, 21))


def test_a_run_that_is_still_reading_its_text_is_held_as_well(holding, plan, tmp_path):
    with holding(DATA, tmp_path / "r.toml", tmp_path / "run") as first:
        refused(lambda: go_on(plan, tmp_path / "run"), first)
        assert ended(first) == 0
    assert steps(tmp_path / "run") == list(range(1, 21))


def test_a_path_by_another_way_is_the_same_folder(holding, plan, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with holding(TRAIN, tmp_path / "r.toml", tmp_path / "run") as first:
        refused(lambda: go_on(plan, tmp_path / "link"), first)


def test_the_verb_says_who_holds_it(holding, plan, tmp_path, capsys):
    with holding(TRAIN, tmp_path / "r.toml", tmp_path / "run") as first:
        (tmp_path / "run" / "report.html").unlink(missing_ok=True)
        assert interlace(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 2
        assert not (tmp_path / "run" / "report.html").exists()  # a folder that is held is not written to
    said = capsys.readouterr().err
    assert str(first.pid) in said
    assert said.count("\n") == 1


def test_a_held_run_can_be_read(holding, plan, tmp_path, capsys):
    with holding(TRAIN, tmp_path / "r.toml", tmp_path / "run"):
        for verb in ("inspect", "generate"):
            assert (
                interlace([verb, str(tmp_path / "run"), *(["the", "--max-tokens", "2"] if verb[0] == "g" else [])]) == 0
            )


def test_what_a_dead_holder_left_behind_says_nothing(holding, plan, tmp_path):
    """Its number may belong to another process by now, as this one's does here."""
    with holding(TRAIN, tmp_path / "r.toml", tmp_path / "run") as first:
        pass
    for file in (tmp_path / "run").rglob("*lock*"):
        file.write_text(file.read_text().replace(str(first.pid), str(os.getpid())))
    go_on(plan, tmp_path / "run")
    assert steps(tmp_path / "run") == list(range(1, 21))


def test_what_was_written_leaves_no_lock_behind(plan, texts, tmp_path):
    go_on(plan, tmp_path / "run")
    prepare(Sources([texts]), "train:300", tmp_path / "tokens")
    assert not [p for p in files(tmp_path) if "lock" in p.name]


def test_two_preparations_of_one_folder(holding, texts, tmp_path):
    out = tmp_path / "tokens"
    with holding(PREPARE, texts, out) as first:
        refused(lambda: prepare(Sources([texts]), "train:300", out), first)
        assert ended(first) == 0
    Corpus.open(out).verify()


def test_a_preparation_that_was_killed_is_begun_again(holding, texts, tmp_path):
    with holding(PREPARE, texts, tmp_path / "tokens"):
        pass
    prepare(Sources([texts]), "train:300", tmp_path / "tokens")
    Corpus.open(tmp_path / "tokens").verify()


def test_two_conversions_to_one_folder(holding, tmp_path):
    import interlace as package

    package.save(HybridLM(preset("tiny-hybrid")), tmp_path / "model")
    with holding(CONVERT, tmp_path / "model", tmp_path / "out") as first:
        refused(lambda: convert(tmp_path / "model", tmp_path / "out", shard_bytes=20_000), first)
    assert convert(tmp_path / "model", tmp_path / "out", shard_bytes=20_000).resumed > 0


def test_two_grids_in_one_folder(holding, tmp_path):
    from interlace.study.tasks.arms import Shape
    from interlace.study.tasks.cell import Budget
    from interlace.study.tasks.grid import TaskGrid

    setting = (Shape(width=16, depth=1, heads=1, mlp=0), Budget(2, 2, (1e-3, 1e-2), evaluations=1, tests=2))
    second = TaskGrid(tmp_path / "out", {"parity": setting}, ("transformer",), 1, jobs=1)
    with holding(GRID, tmp_path, tmp_path / "out") as first:
        refused(second.run, first)


def test_two_quickstarts_in_one_folder(holding, texts, tmp_path):
    from interlace.study.quickstart.run import quickstart

    with holding(QUICKSTART, texts, tmp_path / "out") as first:
        refused(lambda: quickstart(1.0, tmp_path / "out", texts, silent), first)


def test_two_ladders_in_one_folder(holding, texts, tmp_path):
    from interlace.study.ladder.plan import read_ladder
    from interlace.study.ladder.run import LadderRun

    file = tmp_path / "ladder.toml"
    file.write_text(tomli_w.dumps({**LADDER_TABLE, "data": {**LADDER_TABLE["data"], "source": str(texts)}}))
    with holding(LADDER, file, tmp_path / "out") as first:
        refused(lambda: LadderRun(read_ladder(file), tmp_path / "out", 1).run("x"), first)
        refused(lambda: LadderRun(read_ladder(file), tmp_path / "out", 1).emit("local", "x"), first)


def test_two_writers_of_one_file_leave_one_of_both(tmp_path, monkeypatch):
    """A second that comes between a first's writing and its renaming."""
    replace, inside = os.replace, []

    def between(old, new):
        if not inside:
            inside.append(new)
            write_file(tmp_path / "a", "second")
        replace(old, new)

    monkeypatch.setattr(os, "replace", between)
    write_file(tmp_path / "a", "first")
    assert (tmp_path / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
