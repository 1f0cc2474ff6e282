"""Ctrl-C in a terminal: a sentence, exit code 130, and what was going on goes on. The keys reach children as well."""

from __future__ import annotations

import importlib
import io
import json
import sys

import pytest
import tomli_w
from terminal import CTRL_C, ends_well

import interlace
from interlace.cli.main import run
from interlace.data.tokenizer import Tokenizer
from interlace.generation.conversation import Conversation
from interlace.model.presets import preset
from interlace.runs.checkpoints import step_folders
from interlace.train.trainer import Trainer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")


@pytest.fixture
def checkpoint(tmp_path):
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300))
    model.tokenizer = Tokenizer.train(["the quick brown fox"] * 3, 290)
    interlace.save(model, tmp_path / "model")
    return tmp_path / "model"


def test_train_says_that_it_goes_on(terminal, recipe, tmp_path):
    recipe["train"] |= {"tokens": 200_000 * 192, "checkpoints": 200_000}  # one a step
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    screen = terminal("train", "r.toml", "--out", "run", cwd=tmp_path)
    place = screen.until(r"training .*loss")
    while not step_folders(tmp_path / "run"):  # whole ones: one that is being written does not count
        place = screen.until(r"tokens/s", place)
    screen.press(CTRL_C)
    ends_well(screen, screen.end(), last=r"interrupted; the same command goes on from step-\d+$")
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") >= 1


@pytest.mark.parametrize("seen", ["text: ", "learning rates"])
def test_quickstart_says_that_it_goes_on(terminal, texts, tmp_path, seen):
    if seen == "learning rates":  # the plan is made already, so that the rest comes at once
        (tmp_path / "out").mkdir()
        settings = {"quickstart": {"minutes": 2.0, "data": str(texts)}}
        (tmp_path / "out" / "run.toml").write_text(tomli_w.dumps(settings))
        plan = {"steps": 5000, "sweep_steps": 500, "precision": "float32"}
        plan |= {"batch_tokens": 1024, "seconds_per_step": {"transformer": 0.1, "hybrid": 0.1}}
        (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    screen = terminal("quickstart", "--minutes", "2", "--data", texts, "--out", "out", cwd=tmp_path)
    screen.until(seen)
    screen.press(CTRL_C)
    ends_well(screen, screen.end(), last="interrupted.*same command goes on")


def test_chat_drops_the_answer_and_goes_on(terminal, checkpoint):
    screen = terminal("chat", checkpoint, "--max-tokens", "9000", "--temperature", "0")
    place = screen.until("> ")
    screen.press("hello\n")
    place = screen.until(r"hello\n[^>]{3}", place - 2)
    screen.press(CTRL_C)
    place = screen.until("not kept", place)
    place = screen.until("> ", place)
    screen.press("again\n")
    place = screen.until(r"again\n[^>]{3}", place)
    screen.press(CTRL_C)
    screen.until("> ", screen.until("not kept", place))
    screen.press("/quit\n")
    assert screen.end() == 0
    assert "Traceback" not in screen.text
    assert "ended its process" not in screen.text


def test_chat_ends_at_its_prompt(terminal, checkpoint):
    screen = terminal("chat", checkpoint)
    screen.until("> ")
    assert screen.press_until_end(CTRL_C) == 130
    assert "Traceback" not in screen.text
    assert "checkpoint" not in screen.text  # there is none that it could go on from


def test_generate_ends_its_line(terminal, checkpoint):
    screen = terminal("generate", checkpoint, "the", "--max-tokens", "9000", "--temperature", "0")
    screen.until(r"\S{3}")
    screen.press(CTRL_C)
    assert screen.end() == 130
    assert "Traceback" not in screen.text
    assert "interrupted" in screen.text.splitlines()[-1]
    assert "checkpoint" not in screen.text


def test_doctor_just_ends(terminal):
    screen = terminal("doctor")
    screen.until("checking operators")
    screen.press(CTRL_C)
    ends_well(screen, screen.end(), last="interrupted")
    assert "checkpoint" not in screen.text


KEPT = {
    "data prepare t --tokenizer train:300 --out d": (
        "interlace.data.prepare.prepare",
        "interrupted; the same command goes on",
    ),
    "quickstart": ("interlace.study.quickstart.run.quickstart", "interrupted; the same command goes on"),
    "study ladder l.toml": ("interlace.study.ladder.plan.read_ladder", "interrupted; the same command goes on"),
    "study tasks --suite quick": ("interlace.study.tasks.suites.suite", "interrupted; the same command runs the cells"),
    "distill generate r.toml": ("interlace.distill.run.generate", "interrupted; the same command goes on"),
    "convert-checkpoint a b": ("interlace.checkpoint.convert.convert", "interrupted; the same command goes on"),
}
NOTHING = {
    "generate x y": "interlace.load",
    "train r.toml": "interlace.train.recipe.read_recipe",
    "train r.toml --dry-run": "interlace.train.recipe.read_recipe",
    "study ladder l.toml --dry-run": "interlace.study.ladder.plan.read_ladder",
    "study fit p.csv": "interlace.study.scaling.source.read_points",
    "study report p.csv": "interlace.study.scaling.source.read_points",
    "distill status r": "interlace.distill.run.status",
    "distill export r --out d": "interlace.distill.export.export",
    "distill report r": "interlace.distill.report.report",
    "distill generate r.toml --dry-run": "interlace.distill.recipe.read_recipe",
}


def pressed(*args, **more):
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", [*KEPT, *NOTHING])
def test_what_is_said_of_an_interrupt_is_true(command, monkeypatch, capsys, tmp_path):
    """Without a terminal: the library that reads the command line leaves the interrupt to us."""
    monkeypatch.chdir(tmp_path)
    place, says = KEPT.get(command) or (NOTHING[command], "interrupted")
    module, _, name = place.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, pressed)
    monkeypatch.setattr("interlace.cli.distill._say_estimate", lambda *_: None)
    assert run(command.split()) == 130
    error = capsys.readouterr().err
    assert error.startswith(f"interlace: {says}")
    assert error.count("\n") == 1
    assert ("goes on" in error or "the same" in error) == (command in KEPT)


@pytest.mark.parametrize(("after", "says"), [(1, "interlace: interrupted"), (9, "goes on from step-8")])
def test_train_names_the_checkpoint_that_it_goes_on_from(after, says, recipe, monkeypatch, capsys, tmp_path):
    """Five checkpoints in twenty steps."""
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    steps = Trainer.step

    def step(trainer, batch):
        if trainer.done == after:
            raise KeyboardInterrupt
        return steps(trainer, batch)

    monkeypatch.setattr(Trainer, "step", step)
    assert run(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(says)


@pytest.mark.parametrize("how", [["--prompt", "x"], ["--prompt", "x", "--json"], []])
def test_chat_without_somebody_who_talks_is_ended(how, checkpoint, monkeypatch, capsys):
    def say(talk, text):
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "say", say)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a line\nanother\n"))
    assert run(["chat", str(checkpoint), *how]) == 130
    said = capsys.readouterr()
    assert said.out == ("" if "--json" in how else "half an\n")
    assert said.err.strip().splitlines()[-1] == "interlace: interrupted"


def test_a_worker_is_not_in_the_terminals_foreground():
    """Keys pressed for us are not meant for the process that renders."""
    import os

    from interlace.sandbox.templates import Templates

    templates = Templates()
    try:
        assert templates.render("{{ 1 + 1 }}", {}, "x") == "2"
        assert os.getpgid(templates._worker._process.pid) != os.getpgid(0)
    finally:
        templates.close()
