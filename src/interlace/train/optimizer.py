"""Which optimizer moves which parameter: AdamW for all, or Muon for matrices and AdamW for the rest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interlace.layers.low_rank import LowRank
from interlace.layers.parts import Parts
from interlace.layers.projection import Projections
from interlace.model.config import ModelConfig
from interlace.train.muon import Muon, Through, Uncompiled, here
from interlace.train.recipe import TrainSettings
from interlace.train.trained import laid_out_model


class Route(NamedTuple):
    """How one parameter is trained.

    Attributes:
        optimizer: "muon" or "adamw"; "none" for what no gradient moves.
        decays: whether its weights decay.
        parts: the logical matrices in its rows; None for one, or for what is no matrix.
    """

    optimizer: str
    decays: bool
    parts: Parts | None = None


def routes(model: nn.Module, optimizer: str = "adamw") -> dict[str, Route]:
    """Return the route of every parameter, by name.

    Matrices are the weights of linear layers and of experts; embedding and head, taps, norms, gates, biases and
    matrices of one row or column are not.
    """
    ends = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decaying = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decaying |= {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "MATRICES", ())}
    decaying |= {id(p) for m in model.modules() if isinstance(m, LowRank) for p in m.parameters()}
    decaying -= ends
    if isinstance(head := getattr(model, "head", None), nn.Linear):
        ends.add(id(head.weight))
    fused = {
        f"{name}.{inner}": parts
        for name, module in model.named_modules()
        if isinstance(module, Projections)
        for inner, parts in module.fused().items()
    }
    found = {}
    for name, p in model.named_parameters():
        matrix = id(p) in decaying and id(p) not in ends and min(p.shape[-2:]) > 1
        kind = "muon" if matrix and optimizer == "muon" else "adamw"
        route = Route(kind, id(p) in decaying, fused.get(name) if kind == "muon" else None)
        found[name] = route if p.requires_grad else Route("none", False)
    return found


class HeldBytes(NamedTuple):
    """What a model's parameters take in training, in bytes.

    Attributes:
        weights: with the optimizer's moments and the moving average.
        gradients: of what is trained.
    """

    weights: int
    gradients: int


def held_bytes(config: ModelConfig, settings: TrainSettings, frozen_bytes: int = 4) -> HeldBytes:
    """Count the bytes of a model's parameters in training; all but frozen weights are float32.

    frozen_bytes: of an element of a weight that adapters stand beside.
    """
    model = laid_out_model(config, settings)
    moments = {"adamw": 2, "muon": 1, "none": 0}
    found = routes(model, settings.optimizer)
    weights = gradients = 0
    for name, p in model.named_parameters():
        trained = found[name].optimizer != "none"
        element = 4 if trained or settings.lora is None else frozen_bytes
        copies = 2 if settings.average and trained else 1
        weights += p.numel() * (element * copies + 4 * moments[found[name].optimizer])
        gradients += 4 * p.numel() * trained
    return HeldBytes(weights, gradients)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every parameter in exactly one group: matrices decay; embeddings, taps, norms, gates and biases do not."""
    return _groups(model, routes(model), weight_decay)


def _groups(model: nn.Module, found: Mapping[str, Route], weight_decay: float) -> list[dict[str, Any]]:
    rest = {name: p for name, p in model.named_parameters() if found[name].optimizer != "muon"}
    return [
        {"params": [p for name, p in rest.items() if found[name].decays], "weight_decay": weight_decay},
        {"params": [p for name, p in rest.items() if not found[name].decays], "weight_decay": 0.0},
    ]


class AdamW(Uncompiled, torch.optim.AdamW):
    """torch's own, never compiled."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def train_beside(optimizer: Any, parameters: list[Tensor]) -> None:
    """Let AdamW train more parameters, which do not decay."""
    adamw = optimizer.rest if isinstance(optimizer, Muon) else optimizer
    adamw.add_param_group({"params": parameters, "weight_decay": 0.0})
    if adamw is not optimizer:
        optimizer.param_groups.append(adamw.param_groups[-1])


def optimizer_of(
    model: nn.Module,
    settings: TrainSettings,
    precision: str = "float32",
    through: Through = here,
    local: Callable[[Tensor], Tensor] = lambda x: x,
    found: Mapping[str, Route] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe, on a model's float32 master weights.

    Args:
        precision: of the training; Muon orthogonalises in the same.
        through: brings matrices that are cut over several workers together.
        local: returns what lies here of a parameter or a gradient.
        found: the routes; those of the model if None.
    """
    found = routes(model, settings.optimizer) if found is None else found
    groups = _groups(model, found, settings.weight_decay)
    rest = AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    if settings.optimizer == "adamw":
        return rest
    parameters = dict(model.named_parameters())
    matrix_rate = settings.matrix_learning_rate or settings.learning_rate
    names = [name for name, route in found.items() if route.optimizer == "muon"]
    return Muon(
        [parameters[name] for name in names],
        [found[name].parts for name in names],
        rest,
        learning_rate=matrix_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        dtype=getattr(torch, precision),
        share=matrix_rate / settings.learning_rate,
        through=through,
        local=local,
    )
