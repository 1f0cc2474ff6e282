"""Olmo Hybrid: Gated DeltaNet (norm on the input) with attention (norm on the output), NoPE as released.

Source: arXiv 2604.03444; huggingface/transformers src/transformers/models/olmo_hybrid; names as in the released
weights. Traps handled here: three convolutions or one fused, or three cut in equal thirds whatever the projections'
sizes (transformers 5.23 saves them so); two names each for a recurrent layer's norms, and for its output projection and
norm; `rope_parameters` absent, null, or holding a null type or theta, all of which mean NoPE. A null there is read as
theta 10,000 by transformers 5.23, so a model without positions is saved with an explicit null theta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.family import (
    Family,
    Slot,
    attention_slots,
    is_olmo_attention,
    mlp_slots,
    need,
    read_rope,
    read_trunk,
    tied_head,
    trunk_slots,
    write_rope,
    write_trunk,
)
from interlace.layers.attention import AttentionConfig
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.model.config import ModelConfig

NOPE = {"rope_type": "default", "rope_theta": None}
KINDS = {"linear_attention": "gated_delta", "full_attention": "attention"}
PROJECTIONS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "a_proj": "decay",
    "b_proj": "beta",
    "g_proj": "gate",
    "o_proj": "output",
}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """config.json to ours; raises CheckpointError or ConfigError."""
    trunk, heads = read_trunk(config, eps=1e-6), need(config, "num_attention_heads")
    width, depth = trunk["width"], trunk["depth"]
    types = config.get("layer_types")
    if types is None:
        types = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(depth)]
        types = types if "full_attention" in types else [*types[:-1], "full_attention"]
    linear_heads = config.get("linear_num_key_heads") or heads
    key_dim = config.get("linear_key_head_dim") or int(0.75 * width / linear_heads)
    delta = {
        "heads": linear_heads,
        "value_heads": config.get("linear_num_value_heads") or heads,
        "key_dim": key_dim,
        "value_dim": config.get("linear_value_head_dim") or 2 * key_dim,
        "convolution": config.get("linear_conv_kernel_dim", 4),
        "negative_eigenvalues": config.get("linear_allow_neg_eigval", True),
        "decay_range": [float(config.get("linear_a_log_min", 0.0)), float(config.get("linear_a_log_max", 16.0))],
        "step_range": [float(config.get("linear_dt_min", 1e-3)), float(config.get("linear_dt_max", 0.1))],
        "step_floor": float(config.get("linear_dt_init_floor", 1e-4)),
        "norm": "input",
    }
    attention = {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "norm": "output",
        "bias": config.get("attention_bias", False),
        **_position(config),
    }
    pattern = [KINDS.get(t, t) for t in types]
    tables = {"pattern": pattern, "gated_delta": delta, "attention": attention}
    return ModelConfig.from_dict({**trunk, **tables}, where="config.json")


def _position(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE only where a theta is given; the key's history is null, {"rope_type": null}, {"rope_theta": null}."""
    parameters = dict(config.get("rope_parameters") or {})
    if "rope_parameters" not in config:  # before transformers 5
        parameters = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    if parameters.get("rope_theta") is None:
        return {"position": "none"}
    return {"position": "rope", "rope": read_rope(parameters)}


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Ours to config.json, or None where the family cannot say it."""
    used = {config.layers[name] for name in config.kinds}
    delta = next((x for x in used if isinstance(x, GatedDeltaConfig)), None)
    attention = next((x for x in used if isinstance(x, AttentionConfig)), None)
    if delta is None or attention is None or len(used) != 2:
        return None
    fits = delta.norm == "input" and delta.mlp and attention.window is None and is_olmo_attention(config, attention)
    if not fits:
        return None
    types = [k for name in config.kinds for k, v in KINDS.items() if isinstance(config.layers[name], _CLASSES[v])]
    return {
        **write_trunk(config, attention),
        "layer_types": types,
        "rope_parameters": write_rope(attention.rope) if attention.position == "rope" else NOPE,
        "linear_num_key_heads": delta.heads,
        "linear_num_value_heads": delta.groups,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.convolution,
        "linear_allow_neg_eigval": delta.negative_eigenvalues,
        "linear_a_log_min": delta.decay_range[0],
        "linear_a_log_max": delta.decay_range[1],
        "linear_dt_min": delta.step_range[0],
        "linear_dt_max": delta.step_range[1],
        "linear_dt_init_floor": delta.step_floor,
    }


_CLASSES = {"gated_delta": GatedDeltaConfig, "attention": AttentionConfig}


def slots(config: ModelConfig) -> dict[str, Slot]:
    """The released names."""
    found = trunk_slots(config)
    for i in range(config.depth):
        layer, block, kind = f"model.layers.{i}", f"blocks.{i}", config.kind(i)
        found |= mlp_slots(layer, block)
        if not isinstance(kind, GatedDeltaConfig):
            found |= attention_slots(layer, block, kind)
            continue
        mixer = f"{layer}.linear_attn"
        found |= {f"{mixer}.{p}.weight": Slot(f"{block}.mixer.{o}.weight") for p, o in PROJECTIONS.items()}
        found |= {f"{mixer}.{name}": Slot(f"{block}.mixer.{name}") for name in ("A_log", "dt_bias")}
        found[f"{mixer}.o_norm.weight"] = Slot(f"{block}.mixer.norm.weight")
        first = 0
        for letter, size in zip("qkv", kind.channels, strict=True):
            rows = (first, first + size)
            found[f"{mixer}.{letter}_conv1d.weight"] = Slot(f"{block}.mixer.convolution", rows, middle=True)
            first += size
        found[f"{layer}.input_layernorm.weight"] = Slot(f"{block}.mixer_norm.weight")
        found[f"{layer}.post_attention_layernorm.weight"] = Slot(f"{block}.mlp_norm.weight")
    return found


def aliases(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Names that transformers' converters and OLMo-core's exporter have written, and convolutions in equal thirds."""
    found: dict[str, Slot] = {}
    for i in range(config.depth):
        kind = config.kind(i)
        layer, block = f"model.layers.{i}", f"blocks.{i}"
        if not isinstance(kind, GatedDeltaConfig):
            # transformers renames a recurrent layer's norms back when it saves, and this one of attention with them
            found[f"{layer}.feedforward_layer_norm.weight"] = Slot(f"{block}.mixer_norm.weight")
            continue
        found |= {
            f"{layer}.linear_attn.conv1d.weight": Slot(f"{block}.mixer.convolution", middle=True),
            f"{layer}.linear_attn.out_proj.weight": Slot(f"{block}.mixer.output.weight"),
            f"{layer}.linear_attn.norm.weight": Slot(f"{block}.mixer.norm.weight"),
            f"{layer}.attention_layer_norm.weight": Slot(f"{block}.mixer_norm.weight"),
            f"{layer}.feedforward_layer_norm.weight": Slot(f"{block}.mlp_norm.weight"),
        }
        names = [f"{layer}.linear_attn.{letter}_conv1d.weight" for letter in "qkv"]
        cuts = [shapes[n][0] if shapes.get(n) else 0 for n in names]
        third = -(-sum(kind.channels) // 3)
        if cuts == [third, third, sum(kind.channels) - 2 * third]:
            first = 0
            for name, size in zip(names, cuts, strict=True):
                found[name] = Slot(f"{block}.mixer.convolution", (first, first + size), middle=True)
                first += size
    return found


FAMILY = Family("olmo_hybrid", "OlmoHybridForCausalLM", read_config, write_config, slots, aliases, tied_head)
