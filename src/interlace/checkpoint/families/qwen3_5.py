"""Qwen3.5, the text model, dense and with experts: Qwen3-Next's layers with separate projections.

Source: huggingface/transformers src/transformers/models/qwen3_5 and qwen3_5_moe; Qwen/Qwen3.5-9B, Qwen3.5-35B-A3B.

Releases hold the text model beside a vision tower: the config under `text_config`, the names under
`model.language_model.`, the tower under `model.visual.`. The text model is loaded, and saved as one of its own, which
transformers opens. Experts are stored fused in the bf16 releases (`experts.gate_up_proj`), one by one by others; both
are read, and the former is written. With text alone the three axes of mRoPE hold the same positions: plain RoPE.

Traps: the projections are not interleaved as Qwen3-Next's are. `text_config` says whether the head is tied, and
transformers 5.23 believes it alone. The multi-token-prediction layer (`mtp.*`) is kept and saved back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.qwen3_next import (
    MTP,
    MTP_KEYS,
    read_layers,
    shared_slots,
    write_experts,
    write_layers,
)
from interlace.checkpoint.families.slots import expert_slots, linear_slots, stacked, trunk_slots, whole
from interlace.checkpoint.family import Family, Slots
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.layers.moe import MoEConfig
from interlace.model.config import ModelConfig

PROJECTIONS = {"in_proj_z": "gate", "in_proj_b": "beta", "in_proj_a": "decay"}


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the text model's config, which may stand inside that of a model with a vision tower."""
    inner: Mapping[str, Any] | None = config.get("text_config")
    return config if inner is None else inner


def read_dense(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    text = _text(config)
    return read_layers(text, set(range(parts.whole_number(text, "num_hidden_layers", parts.DEEPEST))), None)


def read_sparse(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    text = _text(config)
    moe = {
        "experts": parts.need(text, "num_experts"),
        "chosen": parts.need(text, "num_experts_per_tok"),
        "width": parts.need(text, "moe_intermediate_size"),
        "wide_router": False,
        "shared_width": parts.need(text, "shared_expert_intermediate_size"),
        "shared_gate": True,
    }
    return read_layers(text, set(), moe)


def write_dense(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    written = write_layers(config)
    return None if written is None or written[1] is not None else written[0]


def write_sparse(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    written = write_layers(config)
    if written is None or written[1] is None or "intermediate_size" in written[0] or not written[1].normalise:
        return None
    sizes = write_experts(written[1])
    return None if sizes is None else {**written[0], **sizes}


def slots(config: ModelConfig) -> Slots:
    """Map the released names, without the prefix that stands for the text model, to our parameters."""
    found = trunk_slots(config)
    for i in range(config.depth):
        layer, block, kind = f"model.layers.{i}", f"blocks.{i}", config.kind(i)
        if isinstance(kind, GatedDeltaConfig):
            theirs, ours = f"{layer}.linear_attn", f"{block}.mixer"
            sizes = zip(("query", "key", "value"), kind.channels, strict=True)
            pieces = tuple(stacked(f"{ours}.{name}.weight", size)[0] for name, size in sizes)
            found |= {f"{theirs}.in_proj_qkv.weight": pieces} | linear_slots(theirs, ours, PROJECTIONS)
        found |= shared_slots(layer, block, kind, config, i)
        if isinstance(config.mlp_of(i), MoEConfig):
            names = {"gate_up_proj": "first", "down_proj": "second"}
            found |= whole({f"{layer}.mlp.experts.{p}": f"{block}.mlp.{o}" for p, o in names.items()})
    return found


def aliases(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Slots:
    """Map experts stored one by one, and all names with the prefix of a model with a vision tower."""
    found = slots(config)
    for i in range(config.depth):
        moe = config.mlp_of(i)
        if isinstance(moe, MoEConfig):
            theirs, ours = f"model.layers.{i}.mlp.experts", f"blocks.{i}.mlp"
            found |= expert_slots(theirs, ours, moe, config.width, ("gate_proj", "up_proj", "down_proj"))
    prefix, longer = "model.", "model.language_model."
    return found | {longer + n.removeprefix(prefix): s for n, s in found.items() if n.startswith(prefix)}


DENSE = Family(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    read_dense,
    write_dense,
    slots,
    aliases,
    parts.tied_head,
    kept=MTP,
    kept_keys=MTP_KEYS,
    experts="model.layers.{}.mlp.experts",
    ignored=r"model\.visual\.",
    also=("qwen3_5",),
    text=_text,
)
SPARSE = replace(
    DENSE,
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    read_config=read_sparse,
    write_config=write_sparse,
    also=("qwen3_5_moe",),
)
