"""Rotary positions in published configs: flat keys, nested tables, and the kinds of scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interlace.base.errors import CheckpointError
from interlace.layers.rope import RopeConfig

_SCALINGS: dict[str, dict[str, str]] = {  # published kinds of scaling, and their keys beside `factor`
    "linear": {},
    "dynamic": {},
    "yarn": {
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
    "llama3": {"low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor"},
}
_ORIGINAL = "original_max_position_embeddings"


def rope_parameters(config: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """Return the rope parameters of a config of any age: one table, or the top-level keys of transformers 4."""
    given = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    older = config.get("rope_parameters") or {}
    for key, default in (("rope_theta", theta), ("partial_rotary_factor", None)):
        if given.get(key) is None:
            given[key] = next((t[key] for t in (older, config) if t.get(key) is not None), default)
    return given


def read_rope(parameters: Mapping[str, Any], config: Mapping[str, Any], nested: bool = False) -> dict[str, Any]:
    """Our rope table from published rope parameters, which leave out what the config around them says.

    Args:
        nested: whether they stand in a table for each kind of layer, for which the config's own original length does
            not count.

    Raises:
        CheckpointError: a kind of scaling that is not implemented, or a key of it that is missing.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    table: dict[str, Any] = {"theta": float(parameters["rope_theta"])}
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        table["fraction"] = float(parameters["partial_rotary_factor"])
    if kind == "default":
        return table
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise CheckpointError(
            f"config.json: rope_type {kind!r} is not supported; known: default, {', '.join(_SCALINGS)}"
        )
    if kind != "linear":
        table["original_context"] = _original_context(parameters, config, nested, kind)
    factor: Any = parameters.get("factor")
    if factor is None and kind == "yarn" and config.get("max_position_embeddings"):
        factor = config["max_position_embeddings"] / table["original_context"]
    required = {"factor": factor} | {key: parameters.get(key) for key in _SCALINGS["llama3"] if kind == "llama3"}
    for key, value in required.items():
        if value is None:
            raise CheckpointError(f"config.json: {kind} rope needs '{key}'")
    table |= {"scaling": kind, "factor": float(factor)}
    table |= {ours: parameters[key] for key, ours in _SCALINGS[kind].items() if parameters.get(key) is not None}
    if kind == "yarn":
        table["truncate"] = bool(parameters.get("truncate", True))  # null is false
        table |= {ours: default for ours, default in (("beta_fast", 32.0), ("beta_slow", 1.0)) if not table.get(ours)}
        both: list[Any] = [parameters.get(key) for key in ("mscale", "mscale_all_dim")]
        if "attention_factor" not in table and all(both):
            top, bottom = (0.1 * float(scale) * math.log(factor) + 1.0 if factor > 1 else 1.0 for scale in both)
            table["attention_factor"] = top / bottom
    return table


def _original_context(parameters: Mapping[str, Any], config: Mapping[str, Any], nested: bool, kind: str) -> int:
    """Return the context that a model was first trained on; the longest context if nothing says it."""
    longest = config.get("max_position_embeddings")
    said = (
        [longest]
        if kind == "dynamic"
        else [None if nested else config.get(_ORIGINAL), parameters.get(_ORIGINAL), longest]
    )
    found = next((x for x in said if x is not None), None)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(
            f"config.json: {kind} rope needs '{_ORIGINAL}' or 'max_position_embeddings', got {found!r}"
        )
    return found


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Return published rope parameters for our rope table."""
    published: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1:
        published["partial_rotary_factor"] = rope.fraction
    if rope.scaling == "none":
        return published
    published |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("yarn", "llama3"):
        published[_ORIGINAL] = rope.original_context
    values = {key: getattr(rope, ours) for key, ours in _SCALINGS[rope.scaling].items()}
    return published | {key: value for key, value in values.items() if value is not None}
