"""Llama: the plain pre-norm transformer, without QK-norm; grouped heads, RoPE in all its stretched forms.

Source: arXiv 2407.21783; huggingface/transformers src/transformers/models/llama. `rotary_emb.inv_freq`, which old
conversions stored, is not needed. Traps: head_dim need not be width / heads; "rope_scaling" is the older key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.rope import read_rope, rope_parameters, write_rope
from interlace.checkpoint.families.slots import attention_slots, mlp_slots, trunk_slots, whole
from interlace.checkpoint.family import Family, Slots
from interlace.layers.attention import AttentionConfig
from interlace.layers.mlp import MLPConfig
from interlace.model.config import ModelConfig

NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "mlp_norm"}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    trunk, heads = parts.read_trunk(config, eps=1e-6), parts.need(config, "num_attention_heads")
    attention = {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or trunk["width"] // heads,
        "bias": config.get("attention_bias", False),
        "rope": read_rope(rope_parameters(config, 10_000.0), config),
        "qk_norm": "none",
    }
    tables = {"pattern": ["attention"], "attention": attention, "mlp": parts.read_mlp(config, "mlp_bias")}
    return ModelConfig.from_dict({**trunk, **tables}, where="config.json")


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    attention, mlp = parts.only(used, AttentionConfig), parts.only(mlps, MLPConfig)
    if attention is None or mlp is None or len(used) != 1 or len(mlps) != 1:
        return None
    fits = is_plain_attention(attention) and attention.qk_norm == "none" and attention.window is None
    if not fits or not parts.is_plain_mlp(mlp, bias=True) or not parts.plain_trunk(config):
        return None
    return {
        **parts.write_trunk(config),
        **parts.write_attention(attention),
        "head_dim": attention.head_dim,
        "intermediate_size": mlp.width,
        "mlp_bias": mlp.bias,
        "hidden_act": "silu",
        "rope_parameters": write_rope(attention.rope),
    }


def is_plain_attention(attention: AttentionConfig) -> bool:
    """Return whether an attention kind is pre-norm, with RoPE over whole heads and nothing else."""
    usual = attention.norm == "input" and attention.mlp is True and attention.position == "rope"
    return usual and attention.scale is None and not attention.gate and attention.rope.fraction == 1


def slots(config: ModelConfig) -> Slots:
    """Map the released names, which Qwen3 shares, to our parameters."""
    found = trunk_slots(config)
    for i in range(config.depth):
        layer, block = f"model.layers.{i}", f"blocks.{i}"
        found |= attention_slots(f"{layer}.self_attn", f"{block}.mixer", config.kind(i))
        found |= mlp_slots(f"{layer}.mlp", f"{block}.mlp", config.mlp_of(i).bias)
        found |= whole({f"{layer}.{p}.weight": f"{block}.{o}.weight" for p, o in NORMS.items()})
    return found


FAMILY = Family("llama", "LlamaForCausalLM", read_config, write_config, slots, optional=parts.tied_head)
