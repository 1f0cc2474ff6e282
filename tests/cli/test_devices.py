"""A device that is not there, no device at all, a folder for a file: one line, and nothing written."""

from __future__ import annotations

import json
import subprocess

import pytest
import tomli_w
import torch

import interlace
from interlace.base.errors import ConfigError, InterlaceError
from interlace.cli.main import run
from interlace.data.tokenizer import Tokenizer
from interlace.model.presets import preset

NAMES = ["gpu", "tpu", "CPU", "cuda:x", "", "meta", "cpu:1", "3"]
ABSENT = [
    pytest.param(name, marks=pytest.mark.skipif(there(), reason=f"{name} is here"))
    for name, there in {
        "cuda": torch.cuda.is_available,
        "cuda:99": lambda: False,
        "mps": torch.backends.mps.is_available,
        "xpu": torch.xpu.is_available,
    }.items()
]


@pytest.fixture
def here(tmp_path, monkeypatch, recipe):
    """A folder with a checkpoint `model`, a recipe `r.toml` and a folder called `folder.toml`."""
    monkeypatch.chdir(tmp_path)
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300))
    model.tokenizer = Tokenizer.train(["the quick brown fox"] * 3, 290)
    interlace.save(model, tmp_path / "model")
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe))
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "ladder.toml").write_text(
        tomli_w.dumps({k: v for k, v in recipe.items() if k == "data"}), encoding="utf-8"
    )
    return tmp_path


VERBS = [
    ["generate", "model", "x"],
    ["chat", "model", "--prompt", "x"],
    ["train", "r.toml", "--out", "run"],
    ["train", "r.toml", "--dry-run"],
    ["doctor"],
    ["quickstart", "--minutes", "1", "--out", "race"],
    ["study", "tasks", "--tasks", "parity", "--models", "transformer", "--steps", "1", "--seeds", "1", "--out", "grid"],
]


@pytest.mark.parametrize("device", [*NAMES, *ABSENT])
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_device_is_checked_before_anything_is_done(verb, device, here, capsys, monkeypatch):
    def never(*args, **more):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    before = sorted(here.rglob("*"))
    assert run([*verb, "--device", device]) == 2
    error = capsys.readouterr().err
    assert "device" in error
    assert repr(device) in error
    assert "cpu" in error  # what there is instead
    assert error.count("\n") == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("device", ["gpu", 3.5, *ABSENT])
def test_the_functions_say_the_same(device, here):
    with pytest.raises(ConfigError, match="device"):
        interlace.load("model", device=device)
    with pytest.raises(ConfigError, match="device"):
        interlace.HybridLM(preset("tiny-hybrid"), device=device)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_devices_that_are_there_are_taken(device, here):
    assert interlace.load("model", device=device).device.type == "cpu"


def test_a_model_without_storage_can_still_be_laid_out():
    assert interlace.HybridLM(preset("tiny-hybrid"), device="meta").device.type == "meta"


FOLDERS = [
    ["train", "texts"],
    ["train", "folder.toml", "--dry-run"],
    ["train", "."],
    ["train", "r.toml/x"],
    ["inspect", "folder.toml"],
    ["distill", "generate", "texts"],
    ["distill", "generate", "folder.toml", "--dry-run"],
    ["study", "ladder", "texts", "--dry-run"],
    ["study", "tasks", "--tasks", "parity", "--models", "folder.toml", "--steps", "1", "--out", "grid"],
]


@pytest.mark.parametrize("arguments", FOLDERS, ids=" ".join)
def test_a_folder_is_no_recipe(arguments, here, capsys):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert "folder" in error or "cannot be read" in error or "no such" in error
    assert error.count("\n") == 1


def test_a_recipe_that_may_not_be_read_is_one_line(here, capsys, monkeypatch):
    from pathlib import Path

    real = Path.read_text

    def closed(self, *args, **more):
        if self.name == "r.toml":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "read_text", closed)
    assert run(["train", "r.toml"]) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=99999999999999999999",
        "train.betas=[2.0, 3.0]",
        "train.weight_decay=inf",
        "train.clip=nan",
        "train.learning_rate=inf",
    ],
)
def test_settings_that_torch_would_refuse_are_refused_by_the_recipe(override, here, capsys):
    assert run(["train", "r.toml", override, "--dry-run"]) == 2
    assert override.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--temperature", "nan"], "temperature"),
        (["--max-tokens", "1.5"], "max"),
        (["--max-tokens", "1000000000000"], "max_tokens"),
        (["--seed", "99999999999999999999"], "seed"),
    ],
    ids=str,
)
def test_settings_of_generate_are_one_line(arguments, word, here, capsys):
    assert run(["generate", "model", "x", *arguments]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def test_a_tiny_temperature_draws_the_likeliest(here, capsys):
    texts = []
    for temperature in ("0", "1e-40"):
        assert run(["generate", "model", "x", "--temperature", temperature, "--max-tokens", "5", "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]


def test_what_nobody_foresaw_is_one_line_too(here, capsys, monkeypatch):
    """A fault of ours is said in a line with exit code 1, and `--traceback` shows the rest."""

    def broken(*args, **more):
        raise RuntimeError("boom")

    monkeypatch.setattr(interlace, "load", broken)
    assert run(["generate", "model", "x"]) == 1
    error = capsys.readouterr().err
    assert "boom" in error
    assert "--traceback" in error
    assert "Traceback" not in error
    with pytest.raises(RuntimeError):
        run(["--traceback", "generate", "model", "x"])
    assert issubclass(ConfigError, InterlaceError)


def test_a_cuda_device_that_is_not_there_is_explained(monkeypatch):
    """What torch is, what it was built for, and what it sees; also where some devices are there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(ConfigError) as caught:
        interlace.HybridLM(preset("tiny-hybrid"), device="cuda:5")
    said = str(caught.value)
    assert f"torch {torch.__version__} is built for CUDA 12.8 and sees 2 CUDA devices" in said
    assert "here there is: cpu, cuda, cuda:1" in said
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="is built without CUDA and sees 0 CUDA devices"):
        interlace.load("nowhere", device="cuda")
