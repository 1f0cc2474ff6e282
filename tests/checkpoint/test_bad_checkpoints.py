"""What a stranger's folder may hold, and the sentence that refuses it; nothing in it is run."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import interlace
from interlace.base.errors import CheckpointError, ConfigError, InterlaceError
from interlace.model.model import HybridLM
from interlace.model.presets import preset


@pytest.fixture
def folder(tmp_path):
    interlace.save(HybridLM(preset("tiny-hybrid")), tmp_path / "model")
    return tmp_path / "model"


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(folder, *words, error=CheckpointError):
    with pytest.raises(error) as caught:
        interlace.load(folder)
    for word in words:
        assert word in str(caught.value)


def test_missing_tensor(folder):
    change(folder, lambda t: t.pop("model.layers.2.linear_attn.A_log"))
    refused(folder, "model.layers.2.linear_attn.A_log", "missing")


def test_missing_part_of_a_fused_parameter(folder):
    change(folder, lambda t: t.pop("model.layers.0.linear_attn.k_conv1d.weight"))
    refused(folder, "k_conv1d", "missing")


def test_extra_tensor(folder):
    change(folder, lambda t: t.update({"model.layers.0.mlp.gate_prj.weight": torch.zeros(2)}))
    refused(folder, "gate_prj", "did you mean 'model.layers.0.mlp.gate_proj.weight'")


def test_tensor_given_twice(folder):
    change(folder, lambda t: t.update({"model.layers.0.linear_attn.norm.weight": torch.ones(10)}))
    refused(folder, "twice")


def test_misshapen_tensor(folder):
    change(folder, lambda t: t.update({"model.norm.weight": torch.ones(25)}))
    refused(folder, "model.norm.weight", "[25]", "[24]")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite(folder, value):
    change(folder, lambda t: t["model.norm.weight"].fill_(value))
    refused(folder, "model.norm.weight", "NaN or infinity")


@pytest.mark.parametrize("keep", [4, 60, -10], ids=["length only", "inside the header", "inside the tensors"])
def test_truncated(folder, keep):
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:keep])
    refused(folder, "model.safetensors")


def test_header_that_claims_terabytes(folder):
    (folder / "model.safetensors").write_bytes((1 << 42).to_bytes(8, "little") + b"{}")
    refused(folder, "claims 4,398,046,511,104 bytes")


def test_tensor_that_claims_terabytes(folder):
    entry = {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}
    header = json.dumps({"model.norm.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(folder, "truncated")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        17,
    ],
    ids=str,
)
def test_malformed_entry(folder, entry):
    header = json.dumps({"model.norm.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    refused(folder, "model.norm.weight")


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_pickle_is_refused_and_never_opened(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "pytorch_model.bin", "pickle", "safetensors")
    assert not (folder / "exploded").exists()


def test_unknown_family_and_activation(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    refused(folder, "hidden_act", "gelu")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "olmo_hybird"}))
    refused(folder, "olmo_hybird", "did you mean 'olmo_hybrid'")
    (folder / "config.json").write_text("[1]")
    refused(folder, "must be a table")
    (folder / "config.json").unlink()
    refused(folder, "config.json", error=InterlaceError)


def test_heads_that_do_not_divide(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    refused(folder, "heads", "5", error=ConfigError)


def test_shard_outside_the_folder(folder):
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "outside its own folder")


def test_a_tokenizer_that_does_not_match(folder):
    from interlace.data.tokenizer import Tokenizer

    Tokenizer.train(["some text"], 300).write(folder)  # more ids than the model's vocabulary of 61
    refused(folder, "tokenizer", "61")


def test_shards_are_read_and_written(tmp_path):
    model = HybridLM(preset("tiny-transformer"))
    interlace.save(model, tmp_path / "sharded", shard_bytes=20_000)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    tokens = torch.arange(40)
    assert torch.equal(interlace.load(tmp_path / "sharded")(tokens)[0], model(tokens)[0])
    next((tmp_path / "sharded").glob("model-00002*")).unlink()
    refused(tmp_path / "sharded", "missing")


def test_full_disk_leaves_the_previous_checkpoint(folder, monkeypatch):
    import errno

    from interlace.base.errors import Failure

    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("interlace.checkpoint.save.write_planned", full)
    with pytest.raises(Failure, match="the disk is full") as caught:
        interlace.save(HybridLM(preset("tiny-recurrent")), folder)
    assert caught.value.exit_code == 1
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert not list(folder.parent.glob("*.partial"))


@pytest.mark.slow
def test_loading_takes_little_more_than_the_weights(tmp_path):
    """Peak memory under 1.1 times the weights, measured in a process of its own."""
    import subprocess
    import sys

    script = f"""
import resource, torch, interlace
from interlace.model.config import ModelConfig
config = ModelConfig.from_dict(dict(width=1024, depth=8, vocabulary=8192, pattern=["attention"],
    attention=dict(heads=16, norm="output"), mlp=dict(width=4096)))
if {{save}}:
    interlace.save(interlace.HybridLM(config), {str(tmp_path / "big")!r})
else:
    torch.zeros(1).add(1); interlace.HybridLM
    from interlace.checkpoint.load import load
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = load({str(tmp_path / "big")!r})
    weights = sum(p.nbytes for p in model.parameters())
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / weights, weights)
"""
    for save in (True, False):
        code = script.replace("{save}", str(save))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    ratio, weights = (float(x) for x in done.stdout.split())
    assert weights > 500e6
    assert ratio < 1.1, ratio


# Folders of several files, and configs that ask for what they should not


@pytest.fixture
def sharded(tmp_path):
    interlace.save(HybridLM(preset("tiny-hybrid")), tmp_path / "model", shard_bytes=40_000)
    return tmp_path / "model"


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_shard_that_is_listed_and_absent(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, "model-00002-of-00003.safetensors", "missing", "index.json lists it")


def test_a_tensor_in_two_shards(sharded):
    first, second = (sharded / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    tensors = load_file(second)
    name, value = next(iter(load_file(first).items()))
    save_file({**tensors, name: value}, second)
    refused(sharded, name, "again", first.name, second.name)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a\\b", 3, None])
def test_an_index_that_leaves_the_folder(sharded, shard):
    index = sharded / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"] = dict.fromkeys(document["weight_map"], shard)
    index.write_text(json.dumps(document))
    refused(sharded, "index.json", "outside its own folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_that_leaves_the_folder(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, name, "leaves its folder")


def test_the_hubs_own_links_are_followed(folder, tmp_path):
    """Its cache keeps the files by hash, and links a snapshot's names to them."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    interlace.load(snapshot)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 1 << 40}, ["hidden_size", "1,048,576"]),
        ({"sliding_window": 1 << 40, "layer_types": ["sliding_attention"] * 4}, ["layer_types"]),
        ({"linear_value_head_dim": 1 << 40}, ["value_dim", "absurd"]),
        ({"intermediate_size": 1 << 30}, ["asks for", "the files hold"]),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "spiral"}}, ["spiral", "yarn", "llama3"]),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 2.0}}, ["llama3", "needs"]),
        ({"num_hidden_layers": 5}, ["layers.4", "missing"]),
    ],
    ids=str,
)
def test_configs_that_are_refused(folder, changes, words):
    configure(folder, **changes)
    if "num_hidden_layers" in changes:
        types = json.loads((folder / "config.json").read_text())["layer_types"]
        configure(folder, layer_types=[*types, "linear_attention"])
    refused(folder, *words)


def test_absurd_depth_is_refused_at_once(folder):
    configure(folder, num_hidden_layers=1 << 30)
    refused(folder, "num_hidden_layers", "10,000")


def test_an_unknown_family_lists_those_that_are_known(folder):
    configure(folder, model_type="zebra")
    refused(folder, "zebra", "kimi_linear", "nemotron_h", "granitemoehybrid", "qwen3_5_moe")


def test_keys_of_two_families_mixed(folder, tmp_path):
    """A transformer's tensors in a hybrid's folder, and one of them beside the right ones."""
    interlace.save(HybridLM(preset("tiny-transformer")), tmp_path / "other")
    strange = load_file(tmp_path / "other" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    change(folder, lambda t: t.update({name: strange[name]}))
    refused(folder, name, "does not belong to this model (olmo_hybrid)")


def test_a_tied_head_that_is_not_the_embedding(tmp_path):
    interlace.save(HybridLM(preset("tiny-transformer").replace(tied_embeddings=True)), tmp_path / "model")
    change(tmp_path / "model", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    interlace.load(tmp_path / "model")
    change(tmp_path / "model", lambda t: t["lm_head.weight"].add_(1))
    refused(tmp_path / "model", "ties the head", "lm_head.weight")
