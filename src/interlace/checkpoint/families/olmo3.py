"""Olmo 3: attention with the norm on the output, QK-norm over the projection, three sliding layers to one full.

Source: huggingface/transformers src/transformers/models/olmo3. Rope scaling, where there is any, stretches the full
layers only. transformers 5.23 drops a top-level `rope_theta` for the sliding layers (they fall back to 500,000);
here both kinds get it, and what is saved names the theta of each, so every reader agrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.rope import read_rope, write_rope
from interlace.checkpoint.families.slots import attention_slots, mlp_slots, trunk_slots, whole
from interlace.checkpoint.family import Family, Slots
from interlace.layers.attention import AttentionConfig
from interlace.layers.mlp import MLPConfig
from interlace.model.config import ModelConfig

KINDS = {"sliding_attention": "sliding", "full_attention": "attention"}
THETA = 500_000.0


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    trunk, heads = parts.read_trunk(config, eps=1e-5), parts.need(config, "num_attention_heads")
    depth = trunk["depth"]
    types = parts.layer_names(config, "layer_types", depth, KINDS)
    types = types or ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(depth)]
    ropes = _ropes(config)
    base = {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "bias": config.get("attention_bias", False),
        "norm": "output",
    }
    tables: dict[str, Any] = {}
    if "full_attention" in types:
        tables["attention"] = {**base, "rope": ropes["full_attention"]}
    if "sliding_attention" in types:
        window = config["sliding_window"] if config.get("sliding_window") == 0 else parts.need(config, "sliding_window")
        tables["sliding"] = {"type": "attention", **base, "window": window or None, "rope": ropes["sliding_attention"]}
    pattern = [KINDS.get(t, t) for t in types]
    return ModelConfig.from_dict(
        {**trunk, "pattern": pattern, "mlp": parts.read_mlp(config), **tables}, where="config.json"
    )


def _ropes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rope table of each kind, from one table per kind, one flat table, or the keys of transformers 4."""
    given = config.get("rope_parameters") or {}
    theta = given.get("rope_theta") or config.get("rope_theta") or THETA
    scaling = config.get("rope_scaling") or (given if given.get("rope_type") else {})
    tables = {}
    for kind in KINDS:
        flat = {**(scaling if kind == "full_attention" else {}), "rope_theta": theta}
        own = given.get(kind)
        tables[kind] = read_rope({"rope_theta": theta, **own} if own else flat, config, nested=bool(own))
    return tables


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    if not all(isinstance(x, AttentionConfig) for x in used) or len({x.window is None for x in used}) != len(used):
        return None
    mlp = parts.only(mlps, MLPConfig)
    if len(mlps) != 1 or not parts.is_plain_mlp(mlp) or not parts.plain_trunk(config):
        return None
    one = next(iter(used))
    if any(x.model_copy(update={"window": one.window, "rope": one.rope}) != one for x in used):
        return None
    if one.position != "rope" or not parts.is_olmo_attention(config, one):
        return None
    by_type = {"full_attention" if x.window is None else "sliding_attention": x for x in used}
    types = ["full_attention" if config.kind(i).window is None else "sliding_attention" for i in range(config.depth)]
    sliding = by_type.get("sliding_attention")
    return {
        **parts.write_trunk(config),
        **parts.write_attention(one),
        "intermediate_size": mlp.width,
        "hidden_act": "silu",
        "layer_types": types,
        "sliding_window": sliding.window if sliding else 4096,
        "rope_parameters": {kind: write_rope(by_type.get(kind, one).rope) for kind in KINDS},
    }


def slots(config: ModelConfig) -> Slots:
    """Map the released names, which Olmo 2 shares, to our parameters."""
    found = trunk_slots(config)
    for i in range(config.depth):
        found |= layer_slots(f"model.layers.{i}", f"blocks.{i}", config.kind(i))
    return found


def layer_slots(layer: str, block: str, kind: AttentionConfig) -> Slots:
    """Map one layer of attention, as Olmo 2, Olmo 3 and Olmo Hybrid name it."""
    norms = {"post_attention_layernorm": "mixer_norm", "post_feedforward_layernorm": "mlp_norm"}
    found = attention_slots(f"{layer}.self_attn", f"{block}.mixer", kind) | mlp_slots(f"{layer}.mlp", f"{block}.mlp")
    return found | whole({f"{layer}.{p}.weight": f"{block}.{o}.weight" for p, o in norms.items()})


FAMILY = Family("olmo3", "Olmo3ForCausalLM", read_config, write_config, slots, optional=parts.tied_head)
