"""What only Olmo Hybrid's checkpoints do: layouts and names seen in the wild, and the size of the 7B."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from configs import olmo_hybrid
from safetensors.torch import load_file, save_file

import interlace


@pytest.mark.parametrize("name", ["olmo_hybrid", "olmo_hybrid grouped"])
def test_convolutions_fused_cut_by_projection_or_in_thirds(pair):
    """The three layouts in which the convolutions have been stored give the same model."""
    _theirs, ours, folder = pair
    tokens = torch.randint(97, (20,))
    want = ours(tokens)[0]
    stored = load_file(folder / "theirs" / "model.safetensors")
    channels = ours.config.layers["gated_delta"].channels
    for layout in ("fused", "by projection", "thirds"):
        changed = dict(stored)
        for i, block in enumerate(ours.blocks):
            prefix = f"model.layers.{i}.linear_attn."
            if f"{prefix}A_log" not in changed:
                continue
            for letter in "qkv":
                changed.pop(f"{prefix}{letter}_conv1d.weight")
            fused = block.mixer.convolution.detach().unsqueeze(1).contiguous()
            if layout == "fused":
                changed[f"{prefix}conv1d.weight"] = fused
            else:
                parts = fused.split(channels) if layout == "by projection" else fused.chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    changed[f"{prefix}{letter}_conv1d.weight"] = part.clone()
        save_file(changed, folder / "theirs" / "model.safetensors")
        assert torch.equal(interlace.load(folder / "theirs")(tokens)[0], want), layout


@pytest.mark.parametrize("name", ["olmo_hybrid"])
def test_other_names_seen_in_the_wild(pair):
    """Norms as transformers' converter names them, output projection and norm as OLMo-core's exporter does."""
    _, ours, folder = pair
    file = folder / "theirs" / "model.safetensors"
    renamed = {}
    for key, value in load_file(file).items():
        if ".3." not in key:  # layer 3 is attention, where one of these names means something else
            for old, new in {
                "input_layernorm": "attention_layer_norm",
                "post_attention_layernorm": "feedforward_layer_norm",
                "linear_attn.o_proj": "linear_attn.out_proj",
                "linear_attn.o_norm": "linear_attn.norm",
            }.items():
                key = key.replace(old, new)
        renamed[key] = value
    save_file(renamed, file)
    tokens = torch.randint(97, (20,))
    assert torch.equal(interlace.load(folder / "theirs")(tokens)[0], ours(tokens)[0])


@pytest.mark.parametrize(
    ("parameters", "position"),
    [
        (None, "none"),
        ({"rope_type": None}, "none"),
        ({"rope_theta": None}, "none"),
        ({"rope_type": "default", "rope_theta": 5e5}, "rope"),
        ("absent", "none"),
        ("top level", "rope"),
    ],
    ids=str,
)
def test_every_history_of_rope_parameters(parameters, position):
    from interlace.checkpoint.families.olmo_hybrid import read_config

    config = json.loads(olmo_hybrid().to_json_string())
    config["rope_parameters"] = parameters
    if isinstance(parameters, str):
        config.pop("rope_parameters")
    if parameters == "top level":
        config |= {"rope_theta": 5e5, "rope_scaling": None}
    attention = read_config(config).layers["attention"]
    assert attention.position == position
    assert position == "none" or attention.rope.theta == 5e5


def test_the_7b_has_the_published_number_of_parameters():
    """7,430,870,688 in all, 7,045,519,008 without the input embedding (arXiv 2604.03444)."""
    from interlace.checkpoint.families.olmo_hybrid import read_config, slots

    config = read_config(json.loads(transformers.OlmoHybridConfig(rope_parameters=None).to_json_string()))
    size = interlace.sizes(config)
    assert size.total == 7_430_870_688
    assert size.total - size.parameters["embedding"] == 7_045_519_008
    assert len(slots(config)) == 523
    memory = 24 * 30 * 96 * 192 * 4
    window = 24 * 3 * (2 * 2880 + 5760) * 2
    assert size.state_bytes[65_536] == memory + window
    assert size.cache_bytes[65_536] == 8 * 2 * 65_536 * 3840 * 2


def test_safetensors_reads_what_we_write(tmp_path):
    """Our writer against the library: bf16 beside float32, and the header it wants."""
    from interlace.checkpoint.tensors import read_header, read_into, write

    a, b = torch.randn(3, 5), torch.randn(7).to(torch.bfloat16)
    write(tmp_path / "x.safetensors", [("b", (7,), b), ("a", (3, 5), a)])
    theirs = load_file(tmp_path / "x.safetensors")
    assert torch.equal(theirs["a"], a)
    assert torch.equal(theirs["b"], b)
    save_file({"a": a, "b": b}, tmp_path / "y.safetensors", metadata={"format": "pt"})
    found = torch.empty(7, dtype=torch.bfloat16)
    read_into(read_header(tmp_path / "y.safetensors")["b"], "b", found)
    assert torch.equal(found, b)
