"""Match capacity: one free dimension of a model is solved for, until its parameters or FLOPs equal another's."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from interlace.base.errors import ConfigError
from interlace.model.config import ModelConfig
from interlace.model.sizes import sizes

Measure = Callable[[ModelConfig], float]
NEAR = 24  # how far around the solution other values are looked at, since not every one is allowed
MOST = 1 << 20
NOT_FREE = ("heads", "key_heads", "value_heads", "convolution", "window", "experts", "chosen", "groups")


def parameters(config: ModelConfig) -> float:
    """Return the number of parameters without the embedding and the head."""
    return sizes(config, contexts=()).non_embedding


def training_flops(length: int) -> Measure:
    """Return training FLOPs per token for rows of this length, without embedding and head: those are equal."""

    def measure(config: ModelConfig) -> float:
        return sizes(config, (length,)).training_flops_per_token[length] - 6.0 * config.vocabulary * config.width

    return measure


def dimension(config: ModelConfig, name: str) -> int | None:
    """Return the value of a dotted dimension such as mlp.width, or None if the model has none of that name."""
    table, _, field = name.rpartition(".")
    holder = config.layers.get(table) if table else config
    value = getattr(holder, field, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def with_dimension(config: ModelConfig, name: str, value: int) -> ModelConfig | None:
    """Return the model with another value, or None if that is not allowed."""
    data: dict[str, Any] = deepcopy(config.to_dict())
    table, _, field = name.rpartition(".")
    holder = data.setdefault(table, {}) if table else data
    holder[field] = value
    try:
        return ModelConfig.from_dict(data)
    except ConfigError:
        return None


def dimensions(config: ModelConfig) -> list[str]:
    """Return the dimensions that could be free: whole numbers of the layers in use, and the model's width and depth."""
    names = {n for i in range(config.depth) for n in (config.kinds[i], config.mlp_name(i)) if n is not None}
    found = []
    for name, layer in config.layers.items():
        if name in names:
            fields = [f for f in type(layer).model_fields if f not in NOT_FREE]
            found += [f"{name}.{f}" for f in fields if dimension(config, f"{name}.{f}")]
    return [*found, "width", "depth"]


def nearest_value(config: ModelConfig, name: str, target: float, measure: Measure) -> tuple[ModelConfig, float] | None:
    """Return (the model nearest to the target when only this dimension changes, its relative error)."""

    def error(value: int) -> tuple[ModelConfig, float] | None:
        made = with_dimension(config, name, value) if value > 0 else None
        return None if made is None else (made, measure(made) / target - 1)

    def lower(value: int) -> bool:  # measured at the next value that is allowed
        tried = next((e for v in range(value, value + NEAR) if (e := error(v))), None)
        return tried is not None and tried[1] < 0

    low, high = 1, 2
    while high < MOST and lower(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lower(middle) else (low, middle)
    around = [e for v in range(max(1, high - NEAR), high + NEAR + 1) if (e := error(v))]
    return min(around, key=lambda e: abs(e[1]), default=None)


def match(
    config: ModelConfig, free: str, target: float, measure: Measure, tolerance: float, what: str
) -> tuple[ModelConfig, float]:
    """Return (the model with its free dimension solved for, its error relative to the target).

    Raises:
        ConfigError: no value comes within `tolerance`; the message says how close it comes, and which dimension would.
    """
    found = nearest_value(config, free, target, measure) if dimension(config, free) is not None else None
    if found is not None and abs(found[1]) <= tolerance:
        return _rounder(config, free, found, target, measure, tolerance)
    if found is None:
        problem = f"it has no {free}"
    else:
        problem = f"{free} = {dimension(found[0], free)} comes nearest and is off by {found[1]:+.2%}"
    others = []
    for name in dimensions(config):
        other = nearest_value(config, name, target, measure) if name != free else None
        if other is not None:
            others.append((abs(other[1]), f"{name} = {dimension(other[0], name)} ({other[1]:+.2%})"))
    others.sort()
    able = [words for size, words in others if size <= tolerance]
    if able:
        remedy = f"{' or '.join(able[:4])} would do: set it as `free`"
    else:
        closest = f"; of the other dimensions {others[0][1]} comes nearest" if others else ""
        remedy = f"change the width or the depth, or raise the tolerance{closest}"
    raise ConfigError(f"{what}: cannot be matched within {tolerance:.1%}: {problem}; {remedy}")


def _rounder(
    config: ModelConfig,
    free: str,
    found: tuple[ModelConfig, float],
    target: float,
    measure: Measure,
    tolerance: float,
) -> tuple[ModelConfig, float]:
    """Return the model, and its error, with a multiple of 8 if one is close enough: such products are faster."""
    value = dimension(found[0], free) or 0
    for near in (8 * (value // 8), 8 * (value // 8) + 8):
        made = with_dimension(config, free, near) if near else None
        if made is not None and abs(measure(made) / target - 1) <= tolerance:
            return made, measure(made) / target - 1
    return found
