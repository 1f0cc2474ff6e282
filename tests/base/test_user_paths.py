"""Paths as people write them: `~` is their home everywhere, and a path that no system knows is one sentence."""

from __future__ import annotations

import json
import os

import pytest

import interlace
from interlace.base.errors import CheckpointError, ConfigError, DataError, Failure, InterlaceError, RunError
from interlace.base.files import new_folder, user_path
from interlace.base.schema import read_toml
from interlace.checkpoint.convert import convert
from interlace.checkpoint.folder import resolve
from interlace.cli.main import run as verb
from interlace.data.chat import read_template
from interlace.data.prepare import check_tokenizer, prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.model.model import HybridLM
from interlace.model.presets import preset
from interlace.runs.checkpoints import step_of
from interlace.runs.folder import RunFolder

UNKNOWN = {
    "no such user": "~nosuchuser_x/model",
    "too long": "a" * 300,
    "a part too long": f"./{'b' * 300}/y",
    "NUL": "a\0b",
    "letters without end": "a" * 5000,
}
DOORS = {
    "resolve": (lambda p, tmp: resolve(p), CheckpointError),
    "load": (lambda p, tmp: interlace.load(p), CheckpointError),
    "save": (lambda p, tmp: interlace.save(HybridLM(preset("tiny-transformer")), p), CheckpointError),
    "convert": (lambda p, tmp: convert(tmp, p), CheckpointError),
    "sources": (lambda p, tmp: list(Sources([p])), DataError),
    "tokenizer": (lambda p, tmp: check_tokenizer(p), DataError),
    "out of prepare": (lambda p, tmp: prepare(Sources([tmp]), "train:300", p), DataError),
    "prepared folder": (lambda p, tmp: Corpus.open(p), DataError),
    "template": (lambda p, tmp: read_template(p), ConfigError),
    "run folder": (lambda p, tmp: RunFolder(p), RunError),
}


@pytest.mark.parametrize("path", list(UNKNOWN))
@pytest.mark.parametrize("door", list(DOORS))
def test_a_path_that_no_system_knows_is_one_sentence_of_the_room(tmp_path, monkeypatch, door, path):
    monkeypatch.chdir(tmp_path)
    use, kind = DOORS[door]
    with pytest.raises(kind) as caught:
        use(UNKNOWN[path], tmp_path)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


VERBS = [
    ["inspect", "{}"],
    ["generate", "{}", "hi"],
    ["data", "prepare", "{}", "--out", "o", "--tokenizer", "train:300"],
    ["data", "prepare", ".", "--out", "o", "--tokenizer", "{}/t.json"],
    ["data", "prepare", ".", "--out", "{}", "--tokenizer", "train:300"],
    ["data", "inspect", "{}"],
    ["train", "{}"],
    ["convert-checkpoint", ".", "{}"],
    ["distill", "status", "{}"],
    ["study", "fit", "{}"],
    ["quickstart", "--out", "{}"],
]


@pytest.mark.parametrize("path", ["no such user", "too long"])
@pytest.mark.parametrize("arguments", VERBS, ids=lambda a: " ".join(a))
def test_the_terminal_says_it_in_one_line(tmp_path, monkeypatch, capsys, arguments, path):
    monkeypatch.chdir(tmp_path)
    assert verb([a.format(UNKNOWN[path]) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert "not foreseen" not in said
    assert "no such user" in said or "File name too long" in said


def test_home_is_meant_wherever_a_path_is_given(tmp_path, monkeypatch, texts):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = HybridLM(preset("tiny-transformer").replace(vocabulary=300))
    interlace.save(model, "~/saved")
    assert interlace.load("~/saved").config.width == model.config.width
    Tokenizer.train(["some text"], 300).write(tmp_path / "saved")
    convert("~/saved", "~/converted")
    assert prepare(Sources(["~/texts"]), "~/saved/tokenizer.json", "~/out")["splits"]["train"]["documents"]
    assert Corpus.open("~/out").folder == tmp_path / "out"
    assert RunFolder("~/run").path == tmp_path / "run"
    assert verb(["data", "prepare", "~/texts", "--out=~/two", "--tokenizer", "train:300"]) == 0
    assert (tmp_path / "two/manifest.json").is_file()
    assert not list((tmp_path / "here").iterdir())


def test_what_does_not_exist_is_only_a_path(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file" / "below", "relative"):
        assert os.fspath(user_path(path)) == os.fspath(path)


@pytest.mark.parametrize("size", ["²", "٣٠٠", "", "-1", "1e3", "9" * 20, "9" * 5000, " 300"])
def test_a_size_that_is_no_plain_number_is_said(size):
    with pytest.raises(DataError, match=r"must be a tokenizer\.json, or train:N") as caught:
        check_tokenizer(f"train:{size}")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["step-²", "step-٣", "step--1", "step-", "step-1.5"])
def test_a_folder_of_no_number_is_no_checkpoint(tmp_path, name):
    assert step_of(tmp_path / name) is None


@pytest.mark.parametrize("made", ["a file", "a folder"])
def test_a_target_that_cannot_be_replaced_is_found_before_the_first_is(tmp_path, made):
    """Files are replaced in the order of their names: config.json would have been new, and the weights old."""
    out = tmp_path / "out"
    inner = "model.safetensors" if made == "a folder" else "templates"
    out.mkdir()
    (out / "config.json").write_text("old")
    (out / inner).mkdir() if made == "a folder" else (out / inner).write_text("old")
    with pytest.raises(Failure, match=rf"{inner}: is {made} where .* nothing was replaced"), new_folder(out) as new:
        (new / "config.json").write_text("new")
        (new / "templates").mkdir()
        (new / "model.safetensors").write_text("new")
    assert (out / "config.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_saving_over_a_folder_in_the_weights_place_leaves_the_config(tmp_path):
    model = HybridLM(preset("tiny-transformer"))
    interlace.save(model, tmp_path / "m")
    before = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/model.safetensors").unlink()
    (tmp_path / "m/model.safetensors").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps({**before, "old": True}))
    with pytest.raises(InterlaceError, match="is a folder where a file is due"):
        interlace.save(model, tmp_path / "m")
    assert "old" in json.loads((tmp_path / "m/config.json").read_text())


def test_a_mark_of_order_is_no_letter_of_a_recipe(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf[model]\nwidth = 3\n")
    assert read_toml(tmp_path / "r.toml", "recipe") == {"model": {"width": 3}}
