"""Releases as they lie on the hub, where transformers' own saves differ: towers, prefixes, kept layers, experts."""

from __future__ import annotations

import json

import pytest
import torch
from configs import CONFIGS, granite, nemotron_h, qwen3_5
from safetensors.torch import load_file, save_file

import interlace
from interlace.checkpoint.convert import convert
from interlace.checkpoint.families.registry import FAMILIES
from interlace.checkpoint.load import describe
from interlace.checkpoint.save import family_of

TOKENS = torch.arange(30) % 97


def rewrite(folder, tensors, config):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def stored(folder):
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "qwen3_5 grouped"])
def test_the_text_model_out_of_a_release_with_a_vision_tower(pair):
    """Another prefix, a nested config, a tower to leave alone, a prediction layer to keep, and experts fused."""
    _, ours, folder = pair
    tensors, config = stored(folder / "theirs")
    fused = {}
    for i in range(config["num_hidden_layers"]):
        experts = f"model.layers.{i}.mlp.experts"
        if f"{experts}.0.up_proj.weight" not in tensors:
            continue
        names = [f"{experts}.{e}" for e in range(config["num_experts"])]
        gates, ups, downs = ([tensors.pop(f"{n}.{p}_proj.weight") for n in names] for p in ("gate", "up", "down"))
        fused[f"{experts}.gate_up_proj"] = torch.stack([torch.cat(p) for p in zip(gates, ups, strict=True)])
        fused[f"{experts}.down_proj"] = torch.stack(downs)
    renamed = {n.replace("model.", "model.language_model.", 1): t for n, t in (tensors | fused).items()}
    kept = {"mtp.fc.weight": torch.randn(48, 96), "mtp.layers.0.mlp.up_proj.weight": torch.randn(3, 5).bfloat16()}
    outer = {
        "model_type": config["model_type"].removesuffix("_text"),
        "text_config": {**config, "mtp_num_hidden_layers": 1},
        "vision_config": {"depth": 2},
    }
    rewrite(folder / "theirs", renamed | kept | {"model.visual.patch_embed.proj.weight": torch.randn(4, 3)}, outer)
    loaded = interlace.load(folder / "theirs")
    assert torch.equal(loaded(TOKENS)[0], ours(TOKENS)[0])
    interlace.save(loaded, folder / "saved")
    convert(folder / "theirs", folder / "converted")
    for result in ("saved", "converted"):
        found, document = stored(folder / result)
        assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in kept.items())
        assert not any("visual" in n or "language_model" in n for n in found)
        assert document["model_type"] == config["model_type"]
        assert document["mtp_num_hidden_layers"] == 1
        assert torch.equal(interlace.load(folder / result)(TOKENS)[0], ours(TOKENS)[0])


@pytest.mark.parametrize(
    ("name", "layer", "keys"),
    [
        ("qwen3_next", "mtp.layers.0.input_layernorm.weight", {"mtp_num_hidden_layers": 1}),
        ("nemotron_h", "mtp.layers.0.norm.weight", {"num_nextn_predict_layers": 1}),
    ],
)
def test_prediction_layers_are_kept_and_saved_back(pair, layer, keys):
    _, _, folder = pair
    tensors, config = stored(folder / "theirs")
    rewrite(folder / "theirs", {**tensors, layer: torch.randn(48)}, {**config, **keys})
    model = interlace.load(folder / "theirs")
    interlace.save(model, folder / "saved")
    found, document = stored(folder / "saved")
    assert torch.equal(found[layer], stored(folder / "theirs")[0][layer])
    assert document.items() >= keys.items()
    assert sum(p.numel() for p in model.parameters()) == interlace.sizes(model.config).total


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_a_family_writes_it_reads_as_the_same(pair):
    """And it is the family that writes it, before any other that could."""
    _, ours, folder = pair
    family, config, _ = describe(folder / "theirs")
    assert family.model_type == ours.source.model_type
    written = json.loads(json.dumps(family.write_config(config)))
    again = family.read_config(written)
    assert again.replace(pattern=list(again.kinds)) == config.replace(pattern=list(config.kinds))
    assert family_of(config, family.model_type)[0] is family


@pytest.mark.parametrize(
    "config",
    [
        granite(layer_types=["linear_attention"] * 3),
        qwen3_5(layer_types=["linear_attention"] * 4),
        nemotron_h(layers_block_type=["linear_attention", "mlp"]),
    ],
    ids=lambda c: c.model_type,
)
def test_a_family_without_its_attention_can_be_said(config):
    """transformers 5.23 cannot run these with a cache; their configs go there and back."""
    family = next(f for f in FAMILIES if f.model_type == config.model_type)
    read = family.read_config(json.loads(config.to_json_string()))
    assert family.read_config(json.loads(json.dumps(family.write_config(read)))) == read


@pytest.mark.parametrize("name", ["nemotron_h"])
def test_older_words_for_the_same_pattern(pair):
    _, ours, folder = pair
    tensors, config = stored(folder / "theirs")
    words = {"linear_attention": "M", "full_attention": "*", "moe": "E", "mlp": "-"}
    pattern = "".join(words[t] for t in config.pop("layers_block_type"))
    inner = {n.replace("backbone.", "model.", 1): t for n, t in tensors.items()}
    rewrite(folder / "theirs", inner, {**config, "hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)})
    assert torch.equal(interlace.load(folder / "theirs")(TOKENS)[0], ours(TOKENS)[0])


@pytest.mark.parametrize("name", ["kimi_linear"])
def test_the_lists_of_layers_of_the_kimi_release(pair):
    _, ours, folder = pair
    tensors, config = stored(folder / "theirs")
    types = config.pop("layer_types")
    dense = config.pop("mlp_layer_types")
    linear = {
        "full_attn_layers": [i + 1 for i, t in enumerate(types) if t == "full_attention"],
        "kda_layers": [i + 1 for i, t in enumerate(types) if t == "linear_attention"],
        "head_dim": config.pop("linear_head_dim"),
        "num_heads": config.pop("linear_num_heads"),
        "short_conv_kernel_size": config.pop("linear_conv_kernel_dim"),
    }
    first = dense.count("dense")
    rewrite(folder / "theirs", tensors, {**config, "linear_attn_config": linear, "first_k_dense_replace": first})
    assert torch.equal(interlace.load(folder / "theirs")(TOKENS)[0], ours(TOKENS)[0])


@pytest.mark.parametrize("name", ["mamba2", "granitemoehybrid", "qwen3_next"])
def test_scalars_stored_wider_than_the_weights_stay_so(pair):
    """bfloat16 weights beside float32 decays and norms, as releases have them: same values, same bytes back."""
    _, _, folder = pair
    tensors, config = stored(folder / "theirs")
    wide = ("A_log", "dt_bias", ".D", "norm.weight")
    mixed = {n: t if n.endswith(wide) else t.bfloat16() for n, t in tensors.items()}
    rewrite(folder / "theirs", mixed, {**config, "dtype": "bfloat16"})
    model = interlace.load(folder / "theirs")
    assert model.dtype == torch.bfloat16
    model(TOKENS)
    interlace.save(model, folder / "saved")
    found = stored(folder / "saved")[0]
    for name, tensor in mixed.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_every_family_is_among_the_peers():
    published = {f.model_type.removesuffix("_text") for f in FAMILIES} - {"interlace"}
    assert published == {name.split()[0] for name in CONFIGS}
