"""Estimate what a recipe will cost, before anything runs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from interlace.model.config import ModelConfig
from interlace.model.precision import choose_precision, matmul_flops_per_second
from interlace.model.sizes import sizes
from interlace.train.corpus import steps_of
from interlace.train.gauge import flops_share
from interlace.train.memory import footprint
from interlace.train.optimizer import routes
from interlace.train.recipe import Recipe, TrainSettings
from interlace.train.teacher import teacher_flops_per_token
from interlace.train.trained import by_table, laid_out_model

UTILISATION = 0.35  # share of the matrix-product rate that training reached here, CPU (docs/LOG.md)


@dataclass(frozen=True)
class Routed:
    """How the parameters of one name are trained, in all layers of a kind.

    Attributes:
        name: of the parameter; those of blocks begin with the name of the layer's table.
        shape: of each.
        count: how many layers have it.
        optimizer: "muon", "adamw", or "none" for what no gradient moves.
        matrices: how many logical matrices each holds, orthogonalised one by one; 0 where it is not Muon's.
        decays: whether its weights decay.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    optimizer: str
    matrices: int
    decays: bool


def routed(config: ModelConfig, settings: TrainSettings) -> tuple[Routed, ...]:
    """Return which optimizer moves which parameters, layers of a kind together."""
    model = laid_out_model(config, settings)
    found: dict[tuple[Any, ...], int] = {}
    for name, route in routes(model, settings.optimizer).items():
        p = model.get_parameter(name)
        name = by_table(config, name)
        parts = 1 if route.parts is None else len(route.parts.sizes)
        matrices = parts * p.shape[:-2].numel() if route.optimizer == "muon" else 0
        key = (name, tuple(p.shape), route.optimizer, matrices, route.decays)
        if settings.lora is None or route.optimizer != "none":  # frozen weights beside adapters are all the rest
            found[key] = found.get(key, 0) + 1
    return tuple(Routed(k[0], k[1], count, *k[2:]) for k, count in found.items())


@dataclass(frozen=True)
class TrainingEstimate:
    """The cost of a run: counts, FLOPs, bytes and seconds.

    Attributes:
        weight_bytes: of weights, gradients, the optimizer's moments and the moving average.
        activation_bytes: what the blocks keep for the backward pass of one batch.
        peak_memory_bytes: the most that a step takes at once, with the recipe's train.recompute.
        peak_memory_bytes_with_recompute: the same with train.recompute = "block".
        optimizers: which optimizer moves which parameters; of a run with adapters, the adapters alone.
        trained_parameters: those that an optimizer moves.
    """

    parameters: int
    non_embedding_parameters: int
    steps: int
    tokens: int
    training_flops_per_token: float
    training_flops: float
    weight_bytes: int
    activation_bytes: int
    peak_memory_bytes: int
    peak_memory_bytes_with_recompute: int
    precision: str
    matmul_flops_per_second: float
    utilisation: float
    seconds: float
    optimizers: tuple[Routed, ...] = ()
    trained_parameters: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def activation_bytes(config: ModelConfig, rows: int, length: int) -> int:
    """Bytes that autograd keeps for one batch, counted on tensors without storage."""
    return footprint(config, length, torch.device("cpu")).step(rows * length).activations


def estimate(recipe: Recipe, device: str = "cpu") -> TrainingEstimate:
    """Estimate the cost of a recipe on this machine; takes a few seconds.

    On a CPU no weights are allocated; a GPU runs one block of each kind, to measure what it keeps.
    """
    data, length = recipe.data, recipe.data.length
    model = sizes(recipe.model, (length,), element_bytes=4)
    place = torch.device(device)
    precision = choose_precision(recipe.train.precision, place)
    rate = matmul_flops_per_second(getattr(torch, precision), device)
    steps = steps_of(recipe)
    tokens = steps * data.rows * length
    each = model.training_flops_per_token[length] * flops_share(recipe)
    each += teacher_flops_per_token(recipe.objective.teacher, length)
    flops = each * tokens
    parts = footprint(recipe.model, length, place, precision, recipe.train)
    step, moved = parts.of(recipe), routed(recipe.model, recipe.train)
    return TrainingEstimate(
        parameters=model.total,
        non_embedding_parameters=model.non_embedding,
        steps=steps,
        tokens=tokens,
        training_flops_per_token=each,
        training_flops=flops,
        weight_bytes=step.weights + step.gradients + step.teacher,
        activation_bytes=step.activations,
        peak_memory_bytes=step.peak,
        peak_memory_bytes_with_recompute=parts.of(recipe, recompute="block").peak,
        precision=precision,
        matmul_flops_per_second=rate,
        utilisation=UTILISATION,
        seconds=flops / (rate * UTILISATION),
        optimizers=moved,
        trained_parameters=sum(math.prod(r.shape) * r.count for r in moved if r.optimizer != "none"),
    )
