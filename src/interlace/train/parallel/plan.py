"""Which way recurrent layers go on over a context, by an estimate of bytes and FLOPs; how workers are laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interlace.base.errors import ConfigError
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.layers.hyena import HyenaConfig
from interlace.layers.kimi_delta import KimiDeltaConfig
from interlace.layers.mamba import MambaConfig
from interlace.layers.mamba2 import Mamba2Config
from interlace.model.config import ModelConfig
from interlace.train.recipe import ParallelSettings, Recipe

NAMES = ("replicate", "shard", "context", "tensor")
ELEMENT_BYTES = 2  # of what is traded, in bfloat16
RATES = {"cpu": (1e9, 5e10), "cuda": (5e10, 2e14)}  # bytes and FLOPs per second, about, of one worker


@dataclass(frozen=True)
class Cost:
    """What one way of going on costs a worker in each forward pass of all recurrent layers.

    Attributes:
        received_bytes: from other workers.
        extra_flops: beside those of one worker that has its tokens alone.
        possible: whether heads divide among the workers.
    """

    received_bytes: float
    extra_flops: float
    possible: bool = True

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """Return how long it takes."""
        return self.received_bytes / bytes_per_second + self.extra_flops / flops_per_second


def _recurrence(kind: Any) -> tuple[int, int, int, int, int] | None:
    """Return (key heads, value heads, key dim, value dim, decays per value head) of a recurrent layer."""
    if isinstance(kind, GatedDeltaConfig):
        return kind.heads, kind.groups, kind.key_dim, kind.value_dim, 1
    if isinstance(kind, KimiDeltaConfig):
        return kind.heads, kind.heads, kind.key_dim, kind.value_dim, kind.key_dim
    if isinstance(kind, Mamba2Config):
        return kind.groups, kind.heads, kind.state_dim, kind.head_dim, 1
    if isinstance(kind, MambaConfig):
        return 1, kind.inner, kind.state_dim, 1, 1
    return None


def cannot_trade(layer: Any, tensor: int, places: int) -> str:
    """Return why a layer's heads, divided among `tensor` workers, cannot be traded among `places` others; or ""."""
    if isinstance(layer, HyenaConfig):
        own = layer.channels // tensor
        return f"{own} channels" if own % places else ""
    sizes = _recurrence(layer)
    if sizes is None:
        return ""
    H, G = max(1, sizes[0] // tensor), sizes[1] // tensor
    return f"{G} heads of values and {H} of keys" if G % places or (H % places and places % H) else ""


def costs(config: ModelConfig, tokens: int, places: int, tensor: int = 1) -> dict[str, Cost]:
    """Estimate both ways for stretches of so many tokens on each of `places` workers, with heads divided by `tensor`.

    "state": each worker receives the others' (P, B), float32, whatever the length; it runs its stretch a second time,
    and once more with a key for each value where the rule mixes channels. "heads": everything that a recurrence reads
    and writes goes to other workers and back.
    """
    state = heads = extra = 0.0
    for index in range(config.depth):
        sizes = _recurrence(config.kind(index))
        if sizes is None:
            continue
        H, G, K, V, decays = sizes
        mixes = isinstance(config.kind(index), GatedDeltaConfig | KimiDeltaConfig)
        state += (places - 1) * 4 * G * K * (V + (K if mixes else 1))
        once = 6.0 * G * K * V * tokens
        extra += once * (2 + K / V if mixes else 1)
        moved = 2 * H * K * ELEMENT_BYTES + 2 * G * V * ELEMENT_BYTES + G * (decays + 1) * 4
        heads += tokens * moved * (places - 1) / places
    possible = not any(cannot_trade(config.kind(i), tensor, places) for i in range(config.depth))
    return {"state": Cost(state / tensor, extra / tensor), "heads": Cost(heads / tensor, 0.0, possible)}


def way(
    config: ModelConfig,
    tokens: int,
    places: int,
    rates: tuple[float, float],
    tensor: int = 1,
) -> str:
    """Return the faster way, "state" or "heads". rates: bytes and FLOPs per second of a worker."""
    both = costs(config, tokens, places, tensor)
    found = {name: cost for name, cost in both.items() if cost.possible}
    return min(found, key=lambda name: found[name].seconds(*rates))


def trades_heads(recipe: Recipe, sizes: Mapping[str, int], device: str) -> bool:
    """Return whether recurrent layers trade heads over the context, or hand on states."""
    places, how = sizes["context"], recipe.parallel.context_by
    if places == 1 or how != "auto":
        return how == "heads"
    rates = RATES[torch.device(device).type]
    return way(recipe.model, stretch(recipe, sizes), places, rates, tensor=sizes["tensor"]) == "heads"


def stretch(recipe: Recipe, sizes: Mapping[str, int]) -> int:
    """Return the tokens that a worker has of a part of a batch."""
    shares = sizes["replicate"] * sizes["shard"] * recipe.train.accumulate
    return recipe.data.rows * recipe.data.length // shares // sizes["context"]


def laid_out(settings: ParallelSettings, workers: int) -> dict[str, int]:
    """Return how many workers there are in each direction, with "auto" filled in.

    Raises:
        ConfigError: the sizes do not give this number of workers.
    """
    sizes = {name: getattr(settings, name) for name in NAMES}
    known = math.prod(size for size in sizes.values() if size != "auto")
    said = " x ".join(f"{name} = {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == "auto"]
    if (workers % known if free else known != workers) or not workers:
        raise ConfigError(
            f"parallel: {said} is made for {'a multiple of ' if free else ''}{known} workers, but there "
            f"{'is 1' if workers == 1 else f'are {workers}'}; start as many with "
            f"torchrun --nproc-per-node {known} -m interlace train ..., or change [parallel]"
        )
    for name in ("shard", *(n for n in free if n != "shard")):  # what is left goes to the first that asks for it
        if name in free:
            sizes[name], known = workers // known, workers
    return {name: int(size) for name, size in sizes.items()}


def _check_kind_of_work(recipe: Recipe, sizes: Mapping[str, int]) -> None:
    """Raise ConfigError for work that cannot be laid out so."""
    if recipe.objective.hidden and math.prod(sizes.values()) > 1:
        raise ConfigError("objective.hidden: its projection is trained by one worker; set it to 0, or start one")
    if recipe.objective.kind == "distill" and (sizes["context"] > 1 or sizes["tensor"] > 1):
        raise ConfigError(
            "parallel: a teacher reads whole rows with whole weights; set context and tensor to 1, and use shard"
        )
    if recipe.objective.of_pairs and sizes["context"] > 1:
        raise ConfigError("parallel.context: pairs of answers are not cut into stretches; set it to 1")
    if recipe.train.lora is not None and sizes["tensor"] > 1:
        raise ConfigError("parallel.tensor: adapters are not cut over heads; set it to 1")


def check_fits(recipe: Recipe, sizes: dict[str, int]) -> None:
    """Raise ConfigError unless rows and heads divide among the workers; the message names both."""
    _check_kind_of_work(recipe, sizes)
    shares = sizes["replicate"] * sizes["shard"] * recipe.train.accumulate
    if sizes["replicate"] * sizes["shard"] > 1 and recipe.data.rows % shares:
        raise ConfigError(
            f"data.rows: {recipe.data.rows} cannot be divided among replicate {sizes['replicate']} x shard "
            f"{sizes['shard']} workers in {recipe.train.accumulate} parts each (train.accumulate); make it a multiple "
            f"of {shares}"
        )
    width = recipe.model.width
    for name, layer in recipe.model.layers.items():
        if sizes["tensor"] > 1 and name in {
            *recipe.model.kinds,
            *map(recipe.model.mlp_name, range(recipe.model.depth)),
        }:
            try:
                layer.divided(width, sizes["tensor"])
            except ValueError as error:
                raise ConfigError(f"model.{name}.{error}") from None
    places = sizes["context"]
    for name in sorted(set(recipe.model.kinds)) if places > 1 else ():
        layer = recipe.model.layers[name]
        by_heads = recipe.parallel.context_by == "heads" or isinstance(layer, HyenaConfig)
        if by_heads and (what := cannot_trade(layer, sizes["tensor"], places)):
            remedy = "change one of them" if isinstance(layer, HyenaConfig) else 'set context_by = "state"'
            raise ConfigError(
                f"model.{name}: {what} cannot be traded among parallel.context = {places} workers; {remedy}"
            )
