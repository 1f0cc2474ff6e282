"""Qwen3-Next: Gated DeltaNet and gated attention, zero-centred norms, a mixture of experts with a gated shared one.

Source: huggingface/transformers src/transformers/models/qwen3_next; Qwen/Qwen3-Next-80B-A3B.

Traps handled here: `in_proj_qkvz` and `in_proj_ba` are interleaved by key head (its query, key, values and gates; its
betas and decays). Each head of `q_proj` is a query followed by its gate. Norm weights are stored as their difference
from 1, except the recurrent mixer's own. The multi-token-prediction layer (`mtp.*`), which transformers drops, is kept
and saved back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.rope import read_rope, rope_parameters, write_rope
from interlace.checkpoint.families.slots import (
    attention_slots,
    convolution_slots,
    expert_slots,
    linear_slots,
    mlp_slots,
    trunk_slots,
    whole,
)
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.layers.attention import AttentionConfig
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.layers.mlp import MLPConfig
from interlace.layers.moe import MoEConfig
from interlace.model.config import ModelConfig

KINDS = {"linear_attention": "gated_delta", "full_attention": "attention"}
NORMS = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "mlp_norm"}
MTP = r"mtp\."
MTP_KEYS = ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "num_nextn_predict_layers")


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    depth, step = parts.whole_number(config, "num_hidden_layers", parts.DEEPEST), config.get("decoder_sparse_step") or 1
    dense = {
        i
        for i in range(depth)
        if i in (config.get("mlp_only_layers") or []) or not config.get("num_experts", 512) or (i + 1) % step
    }
    moe = None
    if len(dense) < depth:
        moe = {
            "experts": parts.need(config, "num_experts"),
            "chosen": parts.need(config, "num_experts_per_tok"),
            "width": parts.need(config, "moe_intermediate_size"),
            "normalise": config.get("norm_topk_prob", True),
            "wide_router": False,
            "shared_width": parts.need(config, "shared_expert_intermediate_size"),
            "shared_gate": True,
        }
    return read_layers(config, dense, moe)


def read_layers(config: Mapping[str, Any], dense: set[int], moe: dict[str, Any] | None) -> ModelConfig:
    """Read what Qwen3-Next and Qwen3.5 write alike; layers not in `dense` have experts."""
    trunk, heads = parts.read_trunk(config, eps=1e-6), parts.need(config, "num_attention_heads")
    depth = trunk["depth"]
    parts.refuse_unless(config, "hidden_act", *parts.SILU, None)
    types = parts.layer_names(config, "layer_types", depth, KINDS)
    if types is None:
        interval = config.get("full_attention_interval") or 4
        types = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(depth)]
    rope = rope_parameters(config, 10_000.0)
    if rope.get("partial_rotary_factor") is None:
        rope["partial_rotary_factor"] = 0.25
    kinds = {
        "gated_delta": {
            "heads": config.get("linear_num_key_heads", 16),
            "value_heads": config.get("linear_num_value_heads", 32),
            "key_dim": config.get("linear_key_head_dim", 128),
            "value_dim": config.get("linear_value_head_dim", 128),
            "convolution": config.get("linear_conv_kernel_dim", 4),
            "negative_eigenvalues": False,
            "norm_eps": trunk["norm_eps"],
        },
        "attention": {
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or 256,
            "bias": config.get("attention_bias", False),
            "rope": read_rope(rope, config),
            "qk_norm": "head",
            "gate": True,
        },
    }
    tables: dict[str, Any] = {}
    pattern = []
    for i, kind in enumerate(KINDS.get(t, t) for t in types):
        name = kind if moe is None or i not in dense else f"dense_{kind}"
        pattern.append(name)
        if kind in kinds:
            tables[name] = {"type": kind, "mlp": True if i in dense else "moe", **kinds[kind]}
    if dense:
        tables["mlp"] = parts.read_mlp(config)
    if moe is not None:
        tables["moe"] = moe
    return ModelConfig.from_dict(
        {**trunk, "zero_centred_norms": True, "pattern": pattern, **tables}, where="config.json"
    )


def write_layers(config: ModelConfig) -> tuple[dict[str, Any], MoEConfig | None] | None:
    """Write what `read_layers` reads, and the experts; None if it cannot be expressed."""
    used, mlps = parts.used_layers(config)
    mixers = {x.model_copy(update={"mlp": True}) for x in used}
    delta, attention = parts.only(mixers, GatedDeltaConfig), parts.only(mixers, AttentionConfig)
    mlp, moe = parts.only(mlps, MLPConfig), parts.only(mlps, MoEConfig)
    if len(mixers) != (delta is not None) + (attention is not None) or None in map(config.mlp_of, range(config.depth)):
        return None
    if len(mlps) != (mlp is not None) + (moe is not None) or (mlp is not None and not parts.is_plain_mlp(mlp)):
        return None
    if any(x.norm != "input" for x in mixers) or not parts.plain_trunk(config, zero_centred_norms=True):
        return None
    names: dict[type, str] = {GatedDeltaConfig: "linear_attention", AttentionConfig: "full_attention"}
    document = {
        **parts.write_trunk(config),
        "hidden_act": "silu",
        "layer_types": [names[type(config.kind(i))] for i in range(config.depth)],
        "num_attention_heads": 1,  # of a model without attention
        "num_key_value_heads": 1,
        **({} if mlp is None else {"intermediate_size": mlp.width}),
    }
    if attention is not None:
        gated = attention.gate and attention.qk_norm == "head" and attention.position == "rope"
        if not gated or attention.window is not None or attention.scale is not None:
            return None
        rope = {"partial_rotary_factor": attention.rope.fraction, **write_rope(attention.rope)}
        document |= {**parts.write_attention(attention), "head_dim": attention.head_dim, "rope_parameters": rope}
    if delta is not None:
        if delta.norm_eps != config.norm_eps or delta.negative_eigenvalues:
            return None
        document |= {
            "linear_num_key_heads": delta.heads,
            "linear_num_value_heads": delta.groups,
            "linear_key_head_dim": delta.key_dim,
            "linear_value_head_dim": delta.value_dim,
            "linear_conv_kernel_dim": delta.convolution,
        }
    return document, moe


def write_experts(moe: MoEConfig) -> dict[str, Any] | None:
    """Return the sizes of a mixture as Qwen writes them, or None."""
    usual = MoEConfig(
        experts=moe.experts,
        chosen=moe.chosen,
        width=moe.width,
        normalise=moe.normalise,
        wide_router=False,
        shared_width=moe.shared_width,
        shared_gate=True,
    )
    if moe != usual or not moe.shared_width:
        return None
    return {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.chosen,
        "moe_intermediate_size": moe.width,
        "shared_expert_intermediate_size": moe.shared_width,
    }


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    written = write_layers(config)
    if written is None:
        return None
    document, moe = written
    if moe is None:  # every layer dense
        return {**document, "num_experts": 0, "mlp_only_layers": list(range(config.depth))}
    sizes = write_experts(moe)
    dense = [i for i in range(config.depth) if not isinstance(config.mlp_of(i), MoEConfig)]
    sparse = {"decoder_sparse_step": 1, "mlp_only_layers": dense, "norm_topk_prob": moe.normalise}
    return None if sizes is None else {**document, **sizes, **sparse}


def slots(config: ModelConfig) -> Slots:
    """Map the released names to our parameters."""
    found = trunk_slots(config)
    for i in range(config.depth):
        layer, block, kind = f"model.layers.{i}", f"blocks.{i}", config.kind(i)
        if isinstance(kind, GatedDeltaConfig):
            found |= interleaved(f"{layer}.linear_attn", f"{block}.mixer", kind)
        found |= shared_slots(layer, block, kind, config, i)
        moe = config.mlp_of(i)
        if isinstance(moe, MoEConfig):
            names = ("gate_proj", "up_proj", "down_proj")
            found |= expert_slots(f"{layer}.mlp.experts", f"{block}.mlp", moe, config.width, names)
    return found


def shared_slots(layer: str, block: str, kind: Any, config: ModelConfig, index: int) -> Slots:
    """Map what Qwen3-Next and Qwen3.5 name alike: all but the recurrent mixer's projections and the experts."""
    found = whole({f"{layer}.{p}.weight": f"{block}.{o}.weight" for p, o in NORMS.items()})
    if isinstance(kind, GatedDeltaConfig):
        theirs, ours = f"{layer}.linear_attn", f"{block}.mixer"
        found |= convolution_slots(f"{theirs}.conv1d", ours, sum(kind.channels), kind.convolution)
        found |= whole({f"{theirs}.{name}": f"{ours}.{name}" for name in ("A_log", "dt_bias")})
        found |= linear_slots(theirs, ours, {"out_proj": "output", "norm": "norm"})
    else:
        found |= attention_slots(f"{layer}.self_attn", f"{block}.mixer", kind)
    theirs, ours = f"{layer}.mlp", f"{block}.mlp"
    if not isinstance(config.mlp_of(index), MoEConfig):
        return found | mlp_slots(theirs, ours)
    found |= linear_slots(theirs, ours, {"gate": "router", "shared_expert_gate": "shared_gate"})
    return found | mlp_slots(f"{theirs}.shared_expert", f"{ours}.shared")


def interleaved(theirs: str, ours: str, kind: GatedDeltaConfig) -> Slots:
    """Map the two projections whose rows are ordered key head by key head."""
    K, values, group = kind.key_dim, kind.groups // kind.heads * kind.value_dim, kind.groups // kind.heads
    qkvz, ba = [], []
    for h in range(kind.heads):
        for name, size in (("query", K), ("key", K), ("value", values), ("gate", values)):
            qkvz.append(Slot(f"{ours}.{name}.weight", (h * size, (h + 1) * size)))
        ba += [Slot(f"{ours}.{name}.weight", (h * group, (h + 1) * group)) for name in ("beta", "decay")]
    return {f"{theirs}.in_proj_qkvz.weight": tuple(qkvz), f"{theirs}.in_proj_ba.weight": tuple(ba)}


FAMILY = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    read_config,
    write_config,
    slots,
    optional=parts.tied_head,
    experts="model.layers.{}.mlp.experts",
    peft_fuses=r"\.(gate|gate_proj|up_proj|down_proj)$",
    kept=MTP,
    kept_keys=MTP_KEYS,
)
