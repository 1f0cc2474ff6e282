"""Olmo Hybrid: Gated DeltaNet (norm on the input) with attention (norm on the output), NoPE as released.

Source: arXiv 2604.03444; huggingface/transformers src/transformers/models/olmo_hybrid; names as in the released
weights.

Traps handled here:

- The convolutions are three, one fused, or three cut in equal thirds whatever the projections' sizes (transformers 5.23
  saves them so).
- A recurrent layer's norms have two names each, and so have its output projection and norm.
- `rope_parameters` is absent, null, or holds a null type or theta. All of these mean NoPE. transformers 5.23 reads a
null
  as theta 10,000, so a model without positions is saved with an explicit null theta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.olmo3 import layer_slots
from interlace.checkpoint.families.rope import read_rope, write_rope
from interlace.checkpoint.families.slots import linear_slots, mlp_slots, stacked, trunk_slots, whole
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.layers.attention import AttentionConfig
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.layers.mlp import MLPConfig
from interlace.model.config import ModelConfig

NOPE = {"rope_type": "default", "rope_theta": None}
KINDS = {"linear_attention": "gated_delta", "full_attention": "attention"}
NORMS = {
    "linear_attn.o_norm": "mixer.norm",
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mlp_norm",
}
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
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    trunk, heads = parts.read_trunk(config, eps=1e-6), parts.need(config, "num_attention_heads")
    width, depth = trunk["width"], trunk["depth"]
    types = parts.layer_names(config, "layer_types", depth, KINDS)
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
    tables = {"pattern": pattern, "gated_delta": delta, "attention": attention, "mlp": parts.read_mlp(config)}
    return ModelConfig.from_dict({**trunk, **tables}, where="config.json")


def _position(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE only where a theta is given; the key's history is null, {"rope_type": null}, {"rope_theta": null}."""
    parameters = dict(config.get("rope_parameters") or {})
    if "rope_parameters" not in config:  # before transformers 5
        parameters = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    if parameters.get("rope_theta") is None:
        return {"position": "none"}
    return {"position": "rope", "rope": read_rope(parameters, config)}


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    delta, attention, mlp = (
        parts.only(used, GatedDeltaConfig),
        parts.only(used, AttentionConfig),
        parts.only(mlps, MLPConfig),
    )
    if delta is None or attention is None or mlp is None or len(used) != 2 or len(mlps) != 1:
        return None
    fits = delta.norm == "input" and delta.mlp is True and delta.norm_eps == 1e-5 and attention.window is None
    if not (
        fits and parts.is_olmo_attention(config, attention) and parts.is_plain_mlp(mlp) and parts.plain_trunk(config)
    ):
        return None
    types = [k for name in config.kinds for k, v in KINDS.items() if isinstance(config.layers[name], _CLASSES[v])]
    return {
        **parts.write_trunk(config),
        **parts.write_attention(attention),
        "intermediate_size": mlp.width,
        "hidden_act": "silu",
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


def slots(config: ModelConfig) -> Slots:
    """Map the released names to our parameters."""
    found = trunk_slots(config)
    for i in range(config.depth):
        layer, block, kind = f"model.layers.{i}", f"blocks.{i}", config.kind(i)
        if not isinstance(kind, GatedDeltaConfig):
            found |= layer_slots(layer, block, kind)
            continue
        theirs, ours = f"{layer}.linear_attn", f"{block}.mixer"
        found |= mlp_slots(f"{layer}.mlp", f"{block}.mlp") | linear_slots(theirs, ours, PROJECTIONS)
        found |= whole({f"{theirs}.{name}": f"{ours}.{name}" for name in ("A_log", "dt_bias")})
        found |= _convolutions(theirs, ours, kind, kind.channels)
        found |= whole({f"{layer}.{p}.weight": f"{block}.{o}.weight" for p, o in NORMS.items()})
    return found


def _convolutions(theirs: str, ours: str, kind: GatedDeltaConfig, cuts: Sequence[int]) -> Slots:
    """Map the convolution, cut in three."""
    rows = stacked(f"{ours}.convolution", *cuts)
    shapes = [(size, 1, kind.convolution) for size in cuts]
    names = [f"{theirs}.{letter}_conv1d.weight" for letter in "qkv"]
    return {n: (replace(slot, shape=shape),) for n, slot, shape in zip(names, rows, shapes, strict=True)}


def aliases(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Slots:
    """Map names that transformers' converters and OLMo-core's exporter wrote, and convolutions in equal thirds."""
    found: Slots = {}
    for i in range(config.depth):
        kind = config.kind(i)
        layer, block = f"model.layers.{i}", f"blocks.{i}"
        if not isinstance(kind, GatedDeltaConfig):
            # transformers renames a recurrent layer's norms back when it saves, and this one of attention with them
            found |= whole({f"{layer}.feedforward_layer_norm.weight": f"{block}.mixer_norm.weight"})
            continue
        theirs, ours, channels = f"{layer}.linear_attn", f"{block}.mixer", sum(kind.channels)
        found |= whole(
            {
                f"{theirs}.out_proj.weight": f"{ours}.output.weight",
                f"{theirs}.norm.weight": f"{ours}.norm.weight",
                f"{layer}.attention_layer_norm.weight": f"{block}.mixer_norm.weight",
                f"{layer}.feedforward_layer_norm.weight": f"{block}.mlp_norm.weight",
            }
        )
        shape = (channels, 1, kind.convolution)
        found[f"{theirs}.conv1d.weight"] = (Slot(f"{ours}.convolution", shape=shape),)
        third = -(-channels // 3)
        thirds = [third, third, channels - 2 * third]
        if [(shapes.get(f"{theirs}.{letter}_conv1d.weight") or [0])[0] for letter in "qkv"] == thirds:
            found |= _convolutions(theirs, ours, kind, thirds)
    return found


FAMILY = Family("olmo_hybrid", "OlmoHybridForCausalLM", read_config, write_config, slots, aliases, parts.tied_head)
