"""Olmo 2: attention with the norm on the output and QK-norm over the projection; one rope for all layers.

Source: arXiv 2501.00656; huggingface/transformers src/transformers/models/olmo2. Tensor names are those of Olmo 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import olmo3, parts
from interlace.checkpoint.families.rope import read_rope, rope_parameters, write_rope
from interlace.checkpoint.family import Family
from interlace.layers.attention import AttentionConfig
from interlace.layers.mlp import MLPConfig
from interlace.model.config import ModelConfig


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    trunk, heads = parts.read_trunk(config, eps=1e-5), parts.need(config, "num_attention_heads")
    attention = {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "bias": config.get("attention_bias", False),
        "rope": read_rope(rope_parameters(config, 10_000.0), config),
        "norm": "output",
    }
    tables = {"pattern": ["attention"], "attention": attention, "mlp": parts.read_mlp(config)}
    return ModelConfig.from_dict({**trunk, **tables}, where="config.json")


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    attention, mlp = parts.only(used, AttentionConfig), parts.only(mlps, MLPConfig)
    if attention is None or mlp is None or len(used) != 1 or len(mlps) != 1:
        return None
    fits = parts.is_olmo_attention(config, attention) and attention.window is None and attention.position == "rope"
    if not fits or not parts.is_plain_mlp(mlp) or not parts.plain_trunk(config):
        return None
    return {
        **parts.write_trunk(config),
        **parts.write_attention(attention),
        "intermediate_size": mlp.width,
        "hidden_act": "silu",
        "rope_parameters": write_rope(attention.rope),
    }


FAMILY = Family("olmo2", "Olmo2ForCausalLM", read_config, write_config, olmo3.slots, optional=parts.tied_head)
