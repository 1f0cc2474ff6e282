"""Ctrl-C in a terminal: a sentence, exit code 130, and what was going on goes on. The keys reach children as well."""

from __future__ import annotations

import json
import sys

import pytest
import tomli_w
from terminal import CTRL_C, ends_well

import interlace
from interlace.cli.main import run
from interlace.data.tokenizer import Tokenizer
from interlace.model.presets import preset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")


@pytest.fixture
def checkpoint(tmp_path):
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300))
    model.tokenizer = Tokenizer.train(["the quick brown fox"] * 3, 290)
    interlace.save(model, tmp_path / "model")
    return tmp_path / "model"


def test_train_says_that_it_goes_on(terminal, recipe, tmp_path):
    recipe["train"]["tokens"] *= 10_000
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    screen = terminal("train", "r.toml", "--out", "run", cwd=tmp_path)
    screen.until(r"training .*loss")
    screen.press(CTRL_C)
    ends_well(screen, screen.end(), last="interrupted.*same command goes on")
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


@pytest.mark.parametrize(
    ("verb", "says"), [("train", "goes on"), ("quickstart", "goes on"), ("generate", "interrupted")]
)
def test_the_sentence_is_the_verbs_own(verb, says, monkeypatch, capsys, tmp_path):
    """Without a terminal: the library that reads the command line leaves the interrupt to us."""
    import interlace.cli.generate
    import interlace.cli.quickstart
    import interlace.train.recipe

    def pressed(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(interlace.train.recipe, "read_recipe", pressed)
    monkeypatch.setattr(interlace, "load", pressed)
    monkeypatch.setattr("interlace.study.quickstart.run.quickstart", pressed)
    more = {"train": ["r.toml"], "quickstart": ["--out", str(tmp_path)], "generate": ["x", "y"]}[verb]
    assert run([verb, *more]) == 130
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert ("checkpoint" in error or "goes on" in error) == (verb != "generate")


def test_a_worker_is_not_in_the_terminals_foreground():
    """Keys pressed for us are not meant for the process that renders."""
    import os

    from interlace.base.templates import Templates

    templates = Templates()
    try:
        assert templates.render("{{ 1 + 1 }}", {}, "x") == "2"
        assert os.getpgid(templates._worker._process.pid) != os.getpgid(0)
    finally:
        templates.close()
