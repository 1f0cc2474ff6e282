"""Mamba-2: a pure recurrent model, one mixer to a layer and nothing else.

Source: arXiv 2405.21060; huggingface/transformers src/transformers/models/mamba2.

Traps: the gated norm has statistics of its own for each group. The residual stream is float32 whatever the weights are
(`residual_in_fp32`). transformers 5.23 clamps dt to `time_step_limit` in a prompt but not in a cached step, so it does
not agree with itself where the limit binds; here dt is always clamped. The original files say `backbone.embedding`, the
converted ones `backbone.embeddings`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interlace.base.errors import CheckpointError
from interlace.checkpoint.families import parts
from interlace.checkpoint.families.slots import trunk_slots, whole
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.layers.mamba2 import Mamba2Config
from interlace.model.config import ModelConfig

EMBEDDING, NORM = "backbone.embeddings.weight", "backbone.norm_f.weight"
SCALARS = {name: name for name in ("A_log", "D", "dt_bias")}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate config.json to our config; raises CheckpointError or ConfigError."""
    parts.refuse_unless(config, "hidden_act", *parts.SILU)
    trunk = parts.read_trunk(config, eps=1e-5, eps_key="layer_norm_epsilon")
    heads, head_dim, expand = parts.need(config, "num_heads"), parts.need(config, "head_dim"), config.get("expand", 2)
    if heads * head_dim != expand * trunk["width"]:
        raise CheckpointError(
            f"config.json: num_heads = {heads} times head_dim = {head_dim} must be expand = {expand} times "
            f"hidden_size = {trunk['width']}"
        )
    mixer = {
        "heads": heads,
        "head_dim": head_dim,
        "groups": config.get("n_groups", 8),
        "state_dim": config.get("state_size", 128),
        "convolution": config.get("conv_kernel", 4),
        "convolution_bias": config.get("use_conv_bias", True),
        "bias": config.get("use_bias", False),
        "norm_eps": trunk["norm_eps"],
        "mlp": False,
        **read_steps(config),
    }
    tables = {"pattern": ["mamba2"], "mamba2": mixer, "float32_residual": config.get("residual_in_fp32", True)}
    return ModelConfig.from_dict({**trunk, **tables}, where="config.json")


def read_steps(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits of dt and what it is drawn from; infinity is written in more than one way."""
    low, high = (_number(x) for x in config.get("time_step_limit") or (0.0, math.inf))
    table: dict[str, Any] = {"min_step": low}
    if math.isfinite(high):
        table["max_step"] = high
    if config.get("time_step_min") and config.get("time_step_max"):
        table["step_range"] = [config["time_step_min"], config["time_step_max"]]
        table["step_floor"] = config.get("time_step_floor", 1e-4)
    return table


def _number(value: Any) -> float:
    if isinstance(value, Mapping):  # transformers 5 writes {"__float__": "Infinity"}
        value = value.get("__float__")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise CheckpointError(f"config.json: time_step_limit holds {value!r}, which is no number") from None


def write_steps(mixer: Mamba2Config) -> dict[str, Any]:
    """Write what `read_steps` reads; limits that bind nothing are left out."""
    high_limit: Any = mixer.max_step or {"__float__": "Infinity"}  # as transformers writes it
    limit = {"time_step_limit": [mixer.min_step, high_limit]} if mixer.min_step or mixer.max_step else {}
    low, high = mixer.step_range
    return {**limit, "time_step_min": low, "time_step_max": high, "time_step_floor": mixer.step_floor}


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """Translate our config to config.json; None if the family cannot express it."""
    used, mlps = parts.used_layers(config)
    mixer = parts.only(used, Mamba2Config)
    if mixer is None or len(used) != 1 or mlps or mixer.norm != "input" or mixer.norm_eps != config.norm_eps:
        return None
    expand = mixer.inner / config.width
    if expand != int(expand) or not parts.plain_trunk(config, float32_residual=config.float32_residual):
        return None
    return {
        **parts.write_trunk(config, eps_key="layer_norm_epsilon"),
        "hidden_act": "silu",
        "residual_in_fp32": config.float32_residual,
        "num_heads": mixer.heads,
        "head_dim": mixer.head_dim,
        "expand": int(expand),
        "n_groups": mixer.groups,
        "state_size": mixer.state_dim,
        "conv_kernel": mixer.convolution,
        "use_conv_bias": mixer.convolution_bias,
        "use_bias": mixer.bias,
        **write_steps(mixer),
    }


def slots(config: ModelConfig) -> Slots:
    """Map the released names to our parameters."""
    found = trunk_slots(config, EMBEDDING, NORM)
    for i in range(config.depth):
        layer, block = f"backbone.layers.{i}", f"blocks.{i}"
        found |= whole({f"{layer}.norm.weight": f"{block}.mixer_norm.weight"})
        found |= mixer_slots(f"{layer}.mixer", f"{block}.mixer", config.kind(i))
    return found


def mixer_slots(theirs: str, ours: str, kind: Mamba2Config) -> Slots:
    """Map a Mamba-2 mixer under the names that all its families share."""
    names = {"in_proj.weight": "input.weight", "out_proj.weight": "output.weight", "norm.weight": "norm.weight"}
    if kind.bias:
        names |= {"in_proj.bias": "input.bias", "out_proj.bias": "output.bias"}
    if kind.convolution_bias:
        names["conv1d.bias"] = "convolution_bias"
    found = whole({f"{theirs}.{p}": f"{ours}.{o}" for p, o in (names | SCALARS).items()})
    shape = (sum(kind.channels), 1, kind.convolution)
    return found | {f"{theirs}.conv1d.weight": (Slot(f"{ours}.convolution", shape=shape),)}


def aliases(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Slots:
    """Map the embedding as state-spaces/mamba calls it."""
    return whole({"backbone.embedding.weight": "embedding.weight"})


FAMILY = Family("mamba2", "Mamba2ForCausalLM", read_config, write_config, slots, aliases, parts.tied_head)
