"""Conversion of a checkpoint folder: names, dtypes, shards; killed and gone on with; read back and compared."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import interlace
from interlace.base.errors import CheckpointError
from interlace.checkpoint import convert as module
from interlace.checkpoint.convert import convert
from interlace.cli.main import run
from interlace.model.model import HybridLM
from interlace.model.presets import PRESETS, preset

TOKENS = torch.arange(9)


def weights(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    interlace.save(HybridLM(preset("tiny-hybrid")), tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_saved_model_stays_as_it_is(name, tmp_path):
    """Every kind of layer, in many small files; joined again, the bytes are those of the first save."""
    interlace.save(HybridLM(preset(name)), tmp_path / "a")
    result = convert(tmp_path / "a", tmp_path / "b", shard_bytes=20_000)
    assert result.shards == len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    convert(tmp_path / "b", tmp_path / "c")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()
    assert torch.equal(interlace.load(tmp_path / "b")(TOKENS)[0], interlace.load(tmp_path / "a")(TOKENS)[0])


def test_other_names_become_the_released_ones(folder, tmp_path):
    file = folder / "model.safetensors"
    stored = load_file(file)
    fused = torch.cat([stored.pop(f"model.layers.0.linear_attn.{x}_conv1d.weight") for x in "qkv"])
    renamed = {**stored, "model.layers.0.linear_attn.conv1d.weight": fused}
    renamed["model.layers.0.attention_layer_norm.weight"] = renamed.pop("model.layers.0.input_layernorm.weight")
    want = weights(folder)
    save_file(renamed, file, metadata={"format": "pt"})
    convert(folder, tmp_path / "out")
    found = weights(tmp_path / "out")
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


def test_a_dtype_leaves_decays_alone(folder, tmp_path):
    convert(folder, tmp_path / "out", dtype=torch.bfloat16)
    found, want = weights(tmp_path / "out"), weights(folder)
    for name, tensor in found.items():
        kept = name.endswith(("A_log", "dt_bias"))
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(tensor, want[name].to(tensor.dtype)), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert interlace.load(tmp_path / "out").dtype == torch.bfloat16


KILLED = """
import os, sys
from interlace.checkpoint import convert as module

write, written = module.write_planned, []

def dies(path, planned):
    if len(written) == 3:
        os.kill(os.getpid(), 9)
    write(path, planned)
    written.append(path)

module.write_planned = dies
module.convert(sys.argv[1], sys.argv[2], shard_bytes=10_000)
"""


@pytest.mark.slow
def test_a_killed_conversion_goes_on(folder, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    result = convert(folder, tmp_path / "out", shard_bytes=10_000)
    assert result.resumed == 3
    convert(folder, tmp_path / "again", shard_bytes=10_000)
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_other_work_is_not_gone_on_with(folder, tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out")], check=False)
    assert convert(folder, tmp_path / "out", shard_bytes=10_000, dtype=torch.bfloat16).resumed == 0


def test_what_was_written_is_read_back(folder, tmp_path, monkeypatch):
    write = module.write_planned

    def bad_disk(path, planned):
        write(path, planned)
        with open(path, "r+b") as file:
            file.seek(-3, 2)
            file.write(b"\x01")

    monkeypatch.setattr(module, "write_planned", bad_disk)
    with pytest.raises(CheckpointError, match="is not what was written"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    convert(folder, tmp_path / "out")  # the bad file is written again


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="exists"):
        convert(folder, folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    assert run(["convert-checkpoint", str(folder), str(tmp_path / "out"), "--dtype", "int4"]) == 2
    assert run(["convert-checkpoint", str(folder), str(tmp_path / "out"), "--max-shard-size", "big"]) == 2


def test_the_verb(folder, tmp_path, capsys):
    assert run(["convert-checkpoint", str(folder), str(tmp_path / "out"), "--max-shard-size", "20KB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model_type"] == "olmo_hybrid"
    assert document["shards"] == len(list((tmp_path / "out").glob("model-*.safetensors")))
    assert run(["convert-checkpoint", str(folder), str(tmp_path / "two")]) == 0
    assert "written, read back and compared" in " ".join(capsys.readouterr().out.split())


def test_the_mean_of_checkpoints_is_a_checkpoint(tmp_path, capsys):
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(interlace.HybridLM(preset("tiny-hybrid")))
        interlace.save(models[-1], tmp_path / f"{seed}")
    sources = [str(tmp_path / f"{seed}") for seed in range(3)]
    assert run(["average", *sources, "--out", str(tmp_path / "mean"), "--json"]) == 0
    for name, p in interlace.load(tmp_path / "mean").named_parameters():
        whole = torch.stack([dict(m.named_parameters())[name].double() for m in models]).mean(0)
        assert torch.equal(p, whole.float())
    interlace.save(interlace.HybridLM(preset("tiny-kimi")), tmp_path / "other")
    capsys.readouterr()
    for arguments, words in (
        ([sources[0]], "at least two, got 1"),
        ([sources[0], str(tmp_path / "other")], "is another model than"),
        ([*sources, "--out"], "mean"),
    ):
        extra = [str(tmp_path / "mean")] if "--out" in arguments else ["--out", str(tmp_path / "new")]
        assert run(["average", *arguments, *extra]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
