"""Mamba: a pure recurrent model, one mixer to a layer and nothing else.

Source: arXiv 2312.00752; huggingface/transformers src/transformers/models/mamba. The residual stream is float32
whatever the weights are (`residual_in_fp32`), the head is the embedding. transformers 5.23 forgets the recurrent state
when a cached call has more than one token (modeling_mamba.py: the scan begins at zero); one token at a time it agrees.
The original files say `backbone.embedding`, the converted `backbone.embeddings`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.mamba2 import EMBEDDING, NORM, aliases, read_steps
from interlace.checkpoint.families.slots import trunk_slots, whole
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.layers.mamba import MambaConfig
from interlace.model.config import ModelConfig

NAMES = {
    "in_proj.weight": "input.weight",
    "x_proj.weight": "selection.weight",
    "dt_proj.weight": "step.weight",
    "dt_proj.bias": "dt_bias",
    "out_proj.weight": "output.weight",
    "A_log": "A_log",
    "D": "D",
}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    parts.refuse_unless(config, "hidden_act", *parts.SILU)
    trunk = parts.read_trunk({"tie_word_embeddings": True, **config}, eps=1e-5, eps_key="layer_norm_epsilon")
    rank = config.get("time_step_rank", "auto")
    mixer = {
        "inner": config.get("intermediate_size") or int(config.get("expand", 2) * trunk["width"]),
        "state_dim": config.get("state_size", 16),
        "step_rank": math.ceil(trunk["width"] / 16) if rank == "auto" else rank,
        "convolution": config.get("conv_kernel", 4),
        "convolution_bias": config.get("use_conv_bias", True),
        "bias": config.get("use_bias", False),
        "mlp": False,
        **{k: v for k, v in read_steps(config).items() if k != "min_step"},
    }
    tables = {"pattern": ["mamba"], "mamba": mixer, "float32_residual": config.get("residual_in_fp32", True)}
    return ModelConfig.from_dict({**trunk, **tables}, where="config.json")


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    mixer = parts.only(used, MambaConfig)
    if mixer is None or len(used) != 1 or mlps or mixer.norm != "input" or mixer.inner % config.width:
        return None
    if not parts.plain_trunk(config, float32_residual=config.float32_residual):
        return None
    low, high = mixer.step_range
    return {
        **parts.write_trunk(config, eps_key="layer_norm_epsilon"),
        "hidden_act": "silu",
        "residual_in_fp32": config.float32_residual,
        "expand": mixer.inner // config.width,
        "intermediate_size": mixer.inner,
        "state_size": mixer.state_dim,
        "time_step_rank": mixer.step_rank,
        "conv_kernel": mixer.convolution,
        "use_conv_bias": mixer.convolution_bias,
        "use_bias": mixer.bias,
        "time_step_min": low,
        "time_step_max": high,
        "time_step_floor": mixer.step_floor,
    }


def slots(config: ModelConfig) -> Slots:
    """Map the released names to our parameters."""
    found = trunk_slots(config, EMBEDDING, NORM)
    for i in range(config.depth):
        layer, block, kind = f"backbone.layers.{i}", f"blocks.{i}", config.kind(i)
        theirs, ours = f"{layer}.mixer", f"{block}.mixer"
        names = dict(NAMES)
        if kind.bias:
            names |= {"in_proj.bias": "input.bias", "out_proj.bias": "output.bias"}
        if kind.convolution_bias:
            names["conv1d.bias"] = "convolution_bias"
        found |= whole({f"{layer}.norm.weight": f"{block}.mixer_norm.weight"})
        found |= whole({f"{theirs}.{p}": f"{ours}.{o}" for p, o in names.items()})
        found[f"{theirs}.conv1d.weight"] = (Slot(f"{ours}.convolution", shape=(kind.inner, 1, kind.convolution)),)
    return found


FAMILY = Family("mamba", "MambaForCausalLM", read_config, write_config, slots, aliases, parts.tied_head)
