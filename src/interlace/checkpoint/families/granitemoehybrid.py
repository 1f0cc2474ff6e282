"""Granite 4: Mamba-2 with a few attention layers, four multipliers, and experts beside a shared MLP, or that MLP alone.

Source: huggingface/transformers src/transformers/models/granitemoehybrid; ibm-granite/granite-4.0-h-tiny.

Traps: logits are divided by `logits_scaling`; scores are multiplied by `attention_multiplier`, 1 unless it is given.
There are positions only if `position_embedding_type` is "rope". `layer_types` has said "mamba" and "attention"; without
it every layer is recurrent. The router's softmax is over the chosen logits, which is the same as over all and divided
by the sum of the chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.base.errors import CheckpointError
from interlace.checkpoint.families import parts
from interlace.checkpoint.families.mamba2 import mixer_slots, read_steps, write_steps
from interlace.checkpoint.families.rope import read_rope, rope_parameters, write_rope
from interlace.checkpoint.families.slots import attention_slots, linear_slots, trunk_slots, whole
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.layers.attention import AttentionConfig
from interlace.layers.mamba2 import Mamba2Config
from interlace.layers.mlp import MLPConfig
from interlace.layers.moe import MoEConfig
from interlace.model.config import ModelConfig

KINDS = {"linear_attention": "mamba2", "mamba": "mamba2", "full_attention": "attention", "attention": "attention"}
NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "mlp_norm"}
EXPERTS = {"input_linear": "first", "output_linear": "second", "router.layer": "router.weight"}
MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_divisor",
}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    parts.refuse_unless(config, "hidden_act", *parts.SILU)
    trunk = parts.read_trunk(config, eps=1e-6)
    depth = trunk["depth"]
    types = parts.layer_names(config, "layer_types", depth, KINDS) or parts.layer_names(
        config, "layers_block_type", depth, KINDS
    )
    types = types or ["linear_attention"] * depth
    experts = config.get("num_local_experts", 8)
    mlp = "moe" if experts else True
    pattern = [KINDS[t] for t in types]
    kinds = {"mamba2": _mixer, "attention": _attention}
    tables: dict[str, Any] = {
        name: {**read(config, trunk), "mlp": mlp} for name, read in kinds.items() if name in pattern
    }
    shared = parts.whole_number(config, "shared_intermediate_size", 1 << 20)
    if experts:
        tables["moe"] = {
            "experts": experts,
            "chosen": parts.need(config, "num_experts_per_tok"),
            "width": parts.need(config, "intermediate_size"),
            "wide_router": False,
            "shared_width": shared,
        }
    else:
        tables["mlp"] = {"width": shared}
    scales = {ours: float(config.get(theirs, 1.0)) for theirs, ours in MULTIPLIERS.items()}
    return ModelConfig.from_dict({**trunk, **scales, "pattern": pattern, **tables}, where="config.json")


def _mixer(config: Mapping[str, Any], trunk: Mapping[str, Any]) -> dict[str, Any]:
    heads, head_dim = parts.need(config, "mamba_n_heads"), config.get("mamba_d_head", "auto")
    return {
        "heads": heads,
        "head_dim": config.get("mamba_expand", 2) * trunk["width"] // heads if head_dim == "auto" else head_dim,
        "groups": config.get("mamba_n_groups", 1),
        "state_dim": parts.need(config, "mamba_d_state"),
        "convolution": config.get("mamba_d_conv", 4),
        "convolution_bias": config.get("mamba_conv_bias", True),
        "bias": config.get("mamba_proj_bias", False),
        "norm_eps": trunk["norm_eps"],
        **read_steps(config),
    }


def _attention(config: Mapping[str, Any], trunk: Mapping[str, Any]) -> dict[str, Any]:
    heads = parts.need(config, "num_attention_heads")
    return {
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "bias": config.get("attention_bias", False),
        "scale": float(config.get("attention_multiplier", 1.0)),
        "qk_norm": "none",
        **_position(config),
    }


def _position(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config.get("position_embedding_type")
    if kind not in (None, "nope", "rope"):
        raise CheckpointError(f"config.json: position_embedding_type = {kind!r} is not supported; known: rope, nope")
    if kind != "rope":
        return {"position": "none"}
    return {"position": "rope", "rope": read_rope(rope_parameters(config, 10_000.0), config)}


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    mixer, attention = parts.only(used, Mamba2Config), parts.only(used, AttentionConfig)
    mlp, moe = parts.only(mlps, MLPConfig), parts.only(mlps, MoEConfig)
    kinds = (mixer is not None) + (attention is not None)
    if len(used) != kinds or len(mlps) != 1 or None in map(config.mlp_of, range(config.depth)):
        return None
    if attention is None:  # of a model without attention
        attention = AttentionConfig(heads=1, kv_heads=1, head_dim=config.width, position="none", qk_norm="none")
    recurrence = _written_mixer(config, mixer)
    if recurrence is None or any(x.norm != "input" for x in used):
        return None
    plain = attention.qk_norm == "none" and attention.window is None and not attention.gate
    if not plain or attention.dim(config.width) * attention.heads != config.width or attention.rope.fraction != 1:
        return None
    scales = {ours: getattr(config, ours) for ours in MULTIPLIERS.values()}
    if not parts.plain_trunk(config, **scales) or not (parts.is_plain_mlp(mlp) if moe is None else _is_granite(moe)):
        return None
    names: dict[type, str] = {Mamba2Config: "linear_attention", AttentionConfig: "full_attention"}
    rope = attention.position == "rope"
    document = {
        **parts.write_trunk(config),
        **parts.write_attention(attention),
        "hidden_act": "silu",
        "layer_types": [names[type(config.kind(i))] for i in range(config.depth)],
        "attention_multiplier": attention.head_dim**-0.5 if attention.scale is None else attention.scale,
        **{theirs: getattr(config, ours) for theirs, ours in MULTIPLIERS.items()},
        "position_embedding_type": "rope" if rope else None,
        **({"rope_parameters": write_rope(attention.rope)} if rope else {}),
        **recurrence,
        "num_local_experts": 0 if moe is None else moe.experts,
        "shared_intermediate_size": mlp.width if moe is None else moe.shared_width,
    }
    return document if moe is None else {**document, "num_experts_per_tok": moe.chosen, "intermediate_size": moe.width}


def _written_mixer(config: ModelConfig, mixer: Mamba2Config | None) -> dict[str, Any] | None:
    """Return the keys of the recurrence, None if they cannot express it."""
    if mixer is None:  # sizes that transformers takes for a model of this width, which has no such layer
        return {"mamba_n_heads": 1, "mamba_d_head": 2 * config.width, "mamba_expand": 2}
    expand = mixer.inner / config.width
    if mixer.norm_eps != config.norm_eps or expand != int(expand):
        return None
    return {
        "mamba_n_heads": mixer.heads,
        "mamba_d_head": mixer.head_dim,
        "mamba_expand": int(expand),
        "mamba_n_groups": mixer.groups,
        "mamba_d_state": mixer.state_dim,
        "mamba_d_conv": mixer.convolution,
        "mamba_conv_bias": mixer.convolution_bias,
        "mamba_proj_bias": mixer.bias,
        **write_steps(mixer),
    }


def _is_granite(moe: MoEConfig) -> bool:
    usual = MoEConfig(
        experts=moe.experts, chosen=moe.chosen, width=moe.width, shared_width=moe.shared_width, wide_router=False
    )
    return moe == usual and moe.shared_width > 0


def slots(config: ModelConfig) -> Slots:
    """Map the released names to our parameters."""
    found = trunk_slots(config)
    for i in range(config.depth):
        layer, block, kind = f"model.layers.{i}", f"blocks.{i}", config.kind(i)
        found |= whole({f"{layer}.{p}.weight": f"{block}.{o}.weight" for p, o in NORMS.items()})
        if isinstance(kind, Mamba2Config):
            found |= mixer_slots(f"{layer}.mamba", f"{block}.mixer", kind)
        else:
            found |= attention_slots(f"{layer}.self_attn", f"{block}.mixer", kind)
        moe = config.mlp_of(i)
        if isinstance(moe, MoEConfig):
            found |= whole({f"{layer}.block_sparse_moe.{p}.weight": f"{block}.mlp.{o}" for p, o in EXPERTS.items()})
        shared = f"{block}.mlp.shared" if isinstance(moe, MoEConfig) else f"{block}.mlp"
        both = (Slot(f"{shared}.gate.weight"), Slot(f"{shared}.up.weight"))
        found |= {f"{layer}.shared_mlp.input_linear.weight": both}
        found |= linear_slots(f"{layer}.shared_mlp", shared, {"output_linear": "down"})
    return found


FAMILY = Family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    read_config,
    write_config,
    slots,
    optional=parts.tied_head,
    renames=((r"\.router\.layer\.", ".router."),),
    experts="model.layers.{}.block_sparse_moe.experts",
)
