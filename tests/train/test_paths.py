"""A command that could not begin leaves nothing that stands in the corrected one's way, and a dry run looks at data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import tomli_w
from watching import at, scored

from interlace.base.errors import ConfigError, DataError, InterlaceError, RunError
from interlace.base.schema import validate
from interlace.cli.main import run as interlace
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokens import Corpus
from interlace.runs.progress import silent
from interlace.train.loop import train
from interlace.train.recipe import Recipe


def plan_of(recipe, **tables):
    return validate(Recipe, {k: {**v, **tables.get(k, {})} for k, v in recipe.items()}, "")


def go(plan, out, watch=silent):
    return train(plan, out, scored, watch)


@pytest.fixture
def short(recipe):
    recipe["train"] |= {"tokens": 2 * 192, "evaluations": 1, "evaluation_tokens": 480, "checkpoints": 1}
    return recipe


def wrong(tmp_path):
    """By what is wrong: what replaces parts of a good recipe."""
    (tmp_path / "void").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.txt").write_text("only one document")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnope\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "few").mkdir()
    for name in "abc":
        (tmp_path / "few" / name).write_text("few words")
    return {
        "no such source": {"data": {"source": [str(tmp_path / "nowhere")]}},
        "one of two sources": {"data": {"source": [str(tmp_path / "few"), str(tmp_path / "nowhere")]}},
        "an empty folder": {"data": {"source": [str(tmp_path / "void")]}},
        "one document": {"data": {"source": [str(tmp_path / "one")]}},
        "a broken line": {"data": {"source": [str(tmp_path / "bad.jsonl")]}},
        "not UTF-8": {"data": {"source": [str(tmp_path / "latin.txt")]}},
        "too little text": {"data": {"source": [str(tmp_path / "few")]}},
        "no such tokenizer": {"data": {"tokenizer": str(tmp_path / "no.json")}},
        "a tokenizer of no size": {"data": {"tokenizer": "train:many"}},
        "no such template": {"data": {"template": str(tmp_path / "no.jinja")}},
        "a vocabulary that is too small": {"model": {"vocabulary": 260}},
        "no such start": {"train": {"start": str(tmp_path / "no-checkpoint")}},
    }


WRONG = (
    "no such source",
    "one of two sources",
    "an empty folder",
    "one document",
    "a broken line",
    "not UTF-8",
    "too little text",
    "no such tokenizer",
    "a tokenizer of no size",
    "no such template",
    "a vocabulary that is too small",
    "no such start",
)


@pytest.mark.parametrize("what", WRONG)
def test_what_could_not_begin_does_not_stand_in_the_way(short, tmp_path, what):
    out = tmp_path / "run"
    with pytest.raises(InterlaceError):
        go(plan_of(short, **wrong(tmp_path)[what]), out)
    assert not (out / "run.toml").exists()
    run = go(plan_of(short), out)
    assert [m["step"] for m in run.metrics()] == [1, 2]


@pytest.mark.parametrize("what", ["no such source", "one of two sources", "no such tokenizer", "no such template"])
def test_a_path_that_is_not_there_leaves_no_folder(short, tmp_path, what):
    with pytest.raises(InterlaceError):
        go(plan_of(short, **wrong(tmp_path)[what]), tmp_path / "runs/mine")
    assert not (tmp_path / "runs/mine").exists()


def other_texts(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"lorem ipsum {i} dolor sit amet " * 60)
    return folder


def text_of(out):
    corpus = Corpus.open(out / "data")
    split = corpus.splits["train"]
    return corpus.tokenizer.decode(split.read(0, split.count).tolist())


def test_text_prepared_for_a_command_that_failed_is_not_another_s(short, tmp_path):
    """The first failed after its text was prepared; the second names other text."""
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="vocabulary"):
        go(plan_of(short, model={"vocabulary": 260}), out)
    go(plan_of(short, data={"source": [str(other_texts(tmp_path))]}), out)
    assert "lorem" in text_of(out)
    assert "fox" not in text_of(out)


def more_text(folder):
    """The remedy of an error that asks for more of it."""
    for i in range(12):
        (folder / f"more{i}.txt").write_text(f"many words {i} of another kind " * 60)


def test_text_that_was_added_after_a_start_that_failed_is_read(short, tmp_path):
    few = plan_of(short, **wrong(tmp_path)["too little text"])
    with pytest.raises(DataError, match="give more text"):
        go(few, tmp_path / "run")
    more_text(tmp_path / "few")
    go(few, tmp_path / "run")
    assert "another kind" in text_of(tmp_path / "run")


def test_text_that_was_changed_before_the_first_step_is_read_anew(short, texts, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(plan_of(short), tmp_path / "run", at("starting", interrupted))
    more_text(texts)
    go(plan_of(short), tmp_path / "run")
    assert "another kind" in text_of(tmp_path / "run")


def test_a_run_that_has_begun_goes_on_without_its_text(short, texts, tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    prepare(Sources([texts]), "train:300", tmp_path / "tokens")
    shutil.copy(tmp_path / "tokens" / "tokenizer.json", tokenizer)
    plan = plan_of(short, data={"tokenizer": str(tokenizer)})
    go(plan, tmp_path / "run")
    shutil.rmtree(texts)
    tokenizer.unlink()
    assert [m["step"] for m in go(plan, tmp_path / "run").metrics()] == [1, 2]


def test_a_folder_that_was_prepared_from_other_text_is_not_taken_for_the_recipe_s(short, tmp_path):
    out = tmp_path / "run"
    prepare(Sources([other_texts(tmp_path)]), "train:300", out / "data")
    with pytest.raises(InterlaceError, match="data"):
        go(plan_of(short), out)
    assert "lorem" in text_of(out)


KILLED = """
import os, signal, sys
from pathlib import Path
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.train.loop import train
from interlace.train.recipe import read_recipe
train(read_recipe(Path(sys.argv[1])), Path(sys.argv[2]), lambda c: HeldOut(c, 48, 480).score,
      lambda _: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_killed_before_the_first_step_another_command_may_take_the_folder(short, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(tomli_w.dumps(short))
    assert subprocess.run([sys.executable, "-c", KILLED, str(file), str(tmp_path / "run")]).returncode == -9
    run = go(plan_of(short, train={"learning_rate": 1e-3}), tmp_path / "run")
    assert [m["step"] for m in run.metrics()] == [1, 2]


def test_an_error_of_another_kind_leaves_nothing_either(short, tmp_path):
    def broken(*_):
        raise OSError("what no one thought of")

    with pytest.raises(OSError, match="no one"):
        go(plan_of(short), tmp_path / "run", broken)
    assert [m["step"] for m in go(plan_of(short, train={"seed": 3}), tmp_path / "run").metrics()] == [1, 2]


def test_a_run_that_has_begun_is_kept_for_its_recipe(short, tmp_path):
    go(plan_of(short), tmp_path / "run")
    with pytest.raises(RunError, match=r"data\.source"):
        go(plan_of(short, data={"source": [str(tmp_path / "nowhere")]}), tmp_path / "run")


def test_what_lay_in_a_folder_is_not_removed_by_a_command_that_failed(short, tmp_path):
    out = tmp_path / "run"
    prepare(Sources([tmp_path / "texts"]), "train:300", out / "data")
    before = sorted(p.name for p in (out / "data").iterdir())
    with pytest.raises(InterlaceError):
        go(plan_of(short, model={"vocabulary": 260}, data={"source": [str(out / "data")]}), out)
    assert sorted(p.name for p in (out / "data").iterdir()) == before


# --- dry runs ----------------------------------------------------------------------------------------------------

DRY = {
    "no such source": r"nowhere",
    "one of two sources": r"nowhere",
    "an empty folder": r"void",
    "not UTF-8": r"latin\.txt",
    "no such tokenizer": r"no\.json",
    "a tokenizer of no size": r"train:many",
    "no such template": r"no\.jinja",
    "no such start": r"no-checkpoint",
}


@pytest.mark.parametrize("what", list(DRY))
def test_a_dry_run_refuses_what_the_run_would(short, tmp_path, capsys, what):
    laid = wrong(tmp_path)[what]
    (tmp_path / "r.toml").write_text(tomli_w.dumps({k: {**v, **laid.get(k, {})} for k, v in short.items()}))
    assert interlace(["train", str(tmp_path / "r.toml"), "--dry-run", "--json"]) == 2
    said = capsys.readouterr()
    assert DRY[what].replace("\\", "") in said.err
    assert said.out == ""


def test_a_dry_run_looks_whether_a_prepared_folder_fits(short, texts, tmp_path, capsys):
    prepare(Sources([texts]), "train:300", tmp_path / "tokens")
    short["data"] = {"source": str(tmp_path / "tokens"), "length": 48, "rows": 4}
    file = tmp_path / "r.toml"
    file.write_text(tomli_w.dumps(short))
    assert interlace(["train", str(file), "--dry-run"]) == 0
    assert interlace(["train", str(file), "model.vocabulary=260", "--dry-run"]) == 2
    assert "model.vocabulary" in capsys.readouterr().err
    assert interlace(["train", str(file), "data.rows=4000", "--dry-run"]) == 2
    assert "data.rows" in capsys.readouterr().err
    (tmp_path / "tokens/train.documents").unlink()
    assert interlace(["train", str(file), "--dry-run"]) == 2
    assert "train.documents" in capsys.readouterr().err


def test_a_dry_run_says_that_the_folder_belongs_to_another_run(short, tmp_path, capsys):
    go(plan_of(short), tmp_path / "run")
    (tmp_path / "r.toml").write_text(tomli_w.dumps(short))
    arguments = ["train", str(tmp_path / "r.toml"), "train.learning_rate=1e-3", "--out", str(tmp_path / "run")]
    assert interlace([*arguments, "--dry-run"]) == 2
    assert "train.learning_rate" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(short, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(tomli_w.dumps(short))
    before = sorted(os.listdir(tmp_path))
    assert interlace(["train", "r.toml", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert sorted(os.listdir(tmp_path)) == before


UNFIT = {
    "rows longer than the model reads": (["model.max_positions=32"], "model.max_positions"),
    "a new tokenizer larger than the model": (["data.tokenizer=train:5000"], "the tokenizer has 5000 ids"),
    "a tokenizer's file larger than the model": (["data.tokenizer=TOKENS", "model.vocabulary=270"], "model.vocabulary"),
    "a tokenizer without room for every byte": (["data.tokenizer=train:0"], "at least 257"),
    "a number that int() cannot read": (["data.tokenizer=train:\u00b2"], "train:N"),
    "a folder below a file": (["--out", "r.toml/x"], "r.toml, which is a file"),
}


@pytest.mark.parametrize("what", list(UNFIT))
def test_a_dry_run_refuses_what_does_not_fit(short, texts, tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    prepare(Sources([texts]), "train:300", tmp_path / "tokens")
    (tmp_path / "r.toml").write_text(tomli_w.dumps(short))
    arguments = [a.replace("TOKENS", "tokens/tokenizer.json") for a in UNFIT[what][0]]
    assert interlace(["train", "r.toml", *arguments, "--dry-run"]) == 2
    assert UNFIT[what][1] in capsys.readouterr().err


FIELDS = [
    *(f"model.{name}" for name in ("norm_eps", "init_std", "logits_divisor", "gated_delta.norm_eps")),
    *(f"train.{name}" for name in ("learning_rate", "weight_decay", "clip", "balance_loss", "balance_rate")),
]


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("field", FIELDS)
def test_no_number_of_a_recipe_may_be_without_an_end(short, tmp_path, capsys, field, number):
    (tmp_path / "r.toml").write_text(tomli_w.dumps(short))
    assert interlace(["train", str(tmp_path / "r.toml"), f"{field}={number}", "--dry-run"]) == 2
    assert field.removeprefix("model.") in (said := capsys.readouterr().err)
    assert "finite" in said


@pytest.mark.parametrize("given", ["data.source=", 'data.source=["texts", ""]', "data.tokenizer=", "data.source=  "])
def test_a_variable_that_is_not_set_is_not_the_folder_here(short, tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(tomli_w.dumps(short))
    assert interlace(["train", "r.toml", given, "--dry-run"]) == 2
    assert f"{given.partition('=')[0]}: must not be empty" in capsys.readouterr().err


# --- the neighbours ----------------------------------------------------------------------------------------------


@pytest.fixture
def ladder(texts, tmp_path):
    table = {
        "ladder": {"multiples": [0.1], "seeds": 1},
        "rate": {"tried": [2e-3]},
        "data": {"tokenizer": "train:300", "length": 32, "rows": 2, "source": str(texts)},
        "train": {"evaluations": 1, "evaluation_tokens": 640, "checkpoints": 1},
        "model": {"vocabulary": 300},
        "sizes": {"a": {"width": 16, "depth": 2, "attention": {"heads": 2}, "mlp": {"width": 48}}},
        "architectures": {"transformer": {"pattern": ["attention"], "attention": {"norm": "output"}}},
    }
    (tmp_path / "l.toml").write_text(tomli_w.dumps(table))
    return tmp_path / "l.toml"


@pytest.mark.parametrize("override", ["data.source=nowhere/", "data.tokenizer=no.json", "model.vocabulary=260"])
def test_a_ladder_that_could_not_begin_does_not_stand_in_the_way(ladder, tmp_path, override):
    from interlace.study.ladder.plan import read_ladder
    from interlace.study.ladder.run import LadderRun

    with pytest.raises(InterlaceError):
        LadderRun(read_ladder(ladder, [override]), tmp_path / "out").open()
    assert not (tmp_path / "out/run.toml").exists()
    LadderRun(read_ladder(ladder), tmp_path / "out").open()


LADDERS = {
    "data.source=nowhere/": "nowhere",
    "data.tokenizer=no.json": "no.json",
    "model.vocabulary=260": "model.vocabulary",
    "model.max_positions=16": "model.max_positions",
    "--out=l.toml/x": "l.toml, which is a file",
    "ladder.multiples=[inf]": "ladder.multiples",
    "ladder.tolerance=nan": "ladder.tolerance",
    "rate.tried=[nan]": "rate.tried",
    "rate.exponent=inf": "rate.exponent",
    "data.source=": "data.source: must not be empty",
}


@pytest.mark.parametrize("change", list(LADDERS))
def test_a_dry_run_of_a_ladder_looks_at_what_it_needs(ladder, tmp_path, monkeypatch, capsys, change):
    monkeypatch.chdir(tmp_path)
    assert interlace(["study", "ladder", "l.toml", change, "--dry-run", "--json"]) == 2
    assert LADDERS[change] in capsys.readouterr().err


def opened(file, out, *overrides):
    """A ladder with its text prepared, its runs not begun."""
    from interlace.study.ladder.plan import read_ladder
    from interlace.study.ladder.run import LadderRun

    LadderRun(read_ladder(file, overrides), out).open()
    return text_of(out) if (out / "data").is_dir() else ""


def test_a_ladder_s_dry_run_looks_whether_a_prepared_folder_fits(ladder, texts, tmp_path, capsys):
    prepare(Sources([texts]), "train:300", tmp_path / "tokens")
    dry = ["study", "ladder", str(ladder), f"data.source={tmp_path / 'tokens'}", "--dry-run", "--json"]
    assert interlace([*dry, "sizes.a.rows=4000"]) == 2
    assert "data.rows" in capsys.readouterr().err
    assert interlace([*dry, "model.vocabulary=260"]) == 2
    assert "model.vocabulary" in capsys.readouterr().err


def test_a_ladder_s_dry_run_says_that_the_folder_is_another_s(ladder, tmp_path, capsys):
    opened(ladder, tmp_path / "out")
    arguments = ["study", "ladder", str(ladder), "ladder.seeds=2", "--out", str(tmp_path / "out"), "--dry-run"]
    assert interlace(arguments) == 2
    assert "ladder.seeds" in capsys.readouterr().err


def test_text_prepared_for_a_ladder_that_failed_is_not_another_s(ladder, tmp_path):
    """The first failed after its text was prepared; the second names other text."""
    with pytest.raises(InterlaceError, match="rows"):
        opened(ladder, tmp_path / "out", f"data.source={other_texts(tmp_path)}", "sizes.a.rows=4000")
    found = opened(ladder, tmp_path / "out")
    assert "fox" in found
    assert "lorem" not in found


def test_a_ladder_does_not_go_on_with_other_text(ladder, texts, tmp_path):
    prepare(Sources([texts]), "train:300", tmp_path / "tokens")
    source = f"data.source={tmp_path / 'tokens'}"
    opened(ladder, tmp_path / "out", source)
    shutil.rmtree(tmp_path / "tokens")
    prepare(Sources([other_texts(tmp_path)]), "train:300", tmp_path / "tokens")
    with pytest.raises(RunError, match="tokens: the data: is not what this run began with"):
        opened(ladder, tmp_path / "out", source)


def test_a_ladder_that_has_begun_goes_on_without_its_text(ladder, texts, tmp_path):
    opened(ladder, tmp_path / "out")
    shutil.rmtree(texts)
    assert "fox" in opened(ladder, tmp_path / "out")


class Enough(Exception):
    """The race has begun."""


def quick(out, text):
    """A quickstart up to the race."""
    from interlace.study.quickstart.run import quickstart

    def enough(_):
        raise Enough

    with pytest.raises(Enough):
        quickstart(1.0, out, text, at("measuring speed", enough))


def test_a_quickstart_on_too_little_text_does_not_stand_in_the_way(texts, tmp_path):
    (tmp_path / "one.txt").write_text("only one document")
    (tmp_path / "few.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    for name in ("one.txt", "few.jsonl"):
        with pytest.raises(DataError):
            quick(tmp_path / "out", tmp_path / name)
    quick(tmp_path / "out", texts)


def test_a_quickstart_reads_the_text_that_was_added(tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in "abc":
        (few / name).write_text("few words")
    with pytest.raises(DataError, match="give more text"):
        quick(tmp_path / "out", few)
    more_text(few)
    quick(tmp_path / "out", few)


def test_a_quickstart_does_not_go_on_with_other_text(texts, tmp_path):
    quick(tmp_path / "out", texts)
    (tmp_path / "out" / "plan.json").write_text("{}")  # from which on it has begun
    shutil.rmtree(tmp_path / "out" / "data")
    prepare(Sources([other_texts(tmp_path)]), "train:4096", tmp_path / "out" / "data")
    with pytest.raises(RunError, match="the data: is not what this run began with"):
        quick(tmp_path / "out", texts)


def test_a_grid_with_a_wrong_device_does_not_stand_in_the_way(tmp_path, capsys):
    common = ["study", "tasks", "--tasks", "parity", "--models", "transformer", "--seeds", "1", "--steps", "1"]
    assert interlace([*common, "--device", "gpu", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out/run.toml").exists()
