"""Estimate what a recipe will cost, before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM
from interlace.model.precision import choose_precision, matmul_flops_per_second
from interlace.model.sizes import sizes
from interlace.train.loop import steps_of
from interlace.train.recipe import Recipe

UTILISATION = 0.35  # share of the matrix-product rate that training reached here, CPU (docs/LOG.md)


@dataclass(frozen=True)
class TrainingEstimate:
    """The cost of a run: counts, FLOPs, bytes and seconds."""

    parameters: int
    non_embedding_parameters: int
    steps: int
    tokens: int
    training_flops_per_token: float
    training_flops: float
    weight_bytes: int
    activation_bytes: int
    precision: str
    matmul_flops_per_second: float
    utilisation: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def activation_bytes(config: ModelConfig, rows: int, length: int) -> int:
    """Bytes that autograd keeps for one batch, counted on tensors without storage."""
    model = HybridLM(config, device="meta")
    owned = {id(p) for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.device.type == "meta" and id(x) not in owned:
            storage = x.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(x)
        return x

    alive: list[Tensor] = []  # so that no storage's address is used twice
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.hidden(torch.zeros(rows, length, dtype=torch.int64, device="meta"))
    return sum(kept.values())


def estimate(recipe: Recipe, device: str = "cpu") -> TrainingEstimate:
    """Estimate the cost of a recipe on this machine; takes about a second, allocates no weights."""
    data, length = recipe.data, recipe.data.length
    model = sizes(recipe.model, (length,), element_bytes=4)
    precision = choose_precision(recipe.train.precision, torch.device(device))
    rate = matmul_flops_per_second(getattr(torch, precision), device)
    steps = steps_of(recipe)
    tokens = steps * data.rows * length
    flops = model.training_flops_per_token[length] * tokens
    return TrainingEstimate(
        parameters=model.total,
        non_embedding_parameters=model.non_embedding,
        steps=steps,
        tokens=tokens,
        training_flops_per_token=model.training_flops_per_token[length],
        training_flops=flops,
        weight_bytes=16 * model.total,
        activation_bytes=activation_bytes(recipe.model, data.rows, length),
        precision=precision,
        matmul_flops_per_second=rate,
        utilisation=UTILISATION,
        seconds=flops / (rate * UTILISATION),
    )
