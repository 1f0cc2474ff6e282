"""Qwen3, dense: the plain pre-norm transformer with QK-norm per head.

Source: arXiv 2505.09388; huggingface/transformers src/transformers/models/qwen3. Tensor names are Llama's, with
`q_norm` and `k_norm`. Some releases store a tied head a second time (Qwen3-0.6B).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import llama, parts
from interlace.checkpoint.families.rope import read_rope, rope_parameters, write_rope
from interlace.checkpoint.family import Family
from interlace.layers.attention import AttentionConfig
from interlace.layers.mlp import MLPConfig
from interlace.model.config import ModelConfig


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    trunk, heads = parts.read_trunk(config, eps=1e-6), parts.need(config, "num_attention_heads")
    attention = {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or 128,
        "bias": config.get("attention_bias", False),
        "rope": read_rope(rope_parameters(config, 10_000.0), config),
        "qk_norm": "head",
    }
    tables: dict[str, Any] = {"attention": attention, "mlp": parts.read_mlp(config)}
    types = _layer_types(config, trunk["depth"])
    if "sliding" in types:
        tables["sliding"] = {"type": "attention", **attention, "window": parts.need(config, "sliding_window")}
    return ModelConfig.from_dict({**trunk, "pattern": types, **tables}, where="config.json")


def _layer_types(config: Mapping[str, Any], depth: int) -> list[str]:
    kinds = {"full_attention": "attention", "sliding_attention": "sliding"}
    if config.get("sliding_window") == 0:
        return ["attention"] * depth
    if (names := parts.layer_names(config, "layer_types", depth, kinds)) is not None:
        return [kinds[name] for name in names]
    slides = config.get("use_sliding_window") and config.get("sliding_window") is not None
    first = config.get("max_window_layers", 28) if slides else depth
    return ["sliding" if i >= first else "attention" for i in range(depth)]


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    mlp = parts.only(mlps, MLPConfig)
    if not all(isinstance(x, AttentionConfig) for x in used) or mlp is None or len(mlps) != 1:
        return None
    one = next(iter(used))
    windows = {x.window for x in used}
    if len({x.model_copy(update={"window": None}) for x in used}) != 1 or len(windows - {None}) > 1:
        return None
    fits = llama.is_plain_attention(one) and one.qk_norm == "head"
    if not fits or not parts.is_plain_mlp(mlp) or not parts.plain_trunk(config):
        return None
    slides = windows != {None}
    types = ["full_attention" if config.kind(i).window is None else "sliding_attention" for i in range(config.depth)]
    return {
        **parts.write_trunk(config),
        **parts.write_attention(one),
        "head_dim": one.head_dim,
        "intermediate_size": mlp.width,
        "hidden_act": "silu",
        "rope_parameters": write_rope(one.rope),
        "layer_types": types,
        "use_sliding_window": slides,
        **({"sliding_window": next(iter(windows - {None}))} if slides else {}),
    }


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read_config, write_config, llama.slots, optional=parts.tied_head)
