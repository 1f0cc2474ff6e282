"""A trainer's state in a checkpoint's folder: the model as any other checkpoint, and what training needs to resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interlace.checkpoint.adapter import read_adapters, write_adapter
from interlace.checkpoint.folder import is_adapter
from interlace.checkpoint.load import load
from interlace.checkpoint.save import family_of_model, write_model
from interlace.checkpoint.tensors import read_header, read_into, write
from interlace.layers.low_rank import kept_parameters
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")  # AdamW's, and Muon's
OPTIMIZER, FACTS, AVERAGE = "optimizer.safetensors", "training.json", "average"
STATE = "state"  # folder in a checkpoint that several workers wrote


@dataclass(frozen=True)
class Saved:
    """What a checkpoint of one worker holds.

    Attributes:
        model: its weights are written; of a model with adapters, the adapters.
        moments: of the optimizer, as "key/parameter".
        average: the moving average of the weights by parameter; None for none.
        facts: plain data, such as how many steps were taken.
        adapters: A and B of the model's adapters by parameter, where they are not those in the model.
        beside: parameters of the objective by name, which are trained beside the model; their values lie with the
            moments, as "value/NAME".
    """

    model: HybridLM
    moments: Mapping[str, Tensor]
    average: Mapping[str, Tensor] | None
    facts: Mapping[str, Any]
    adapters: Mapping[str, Tensor] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    def copied(self) -> Saved:
        """Return a copy on the CPU, which the next steps do not change."""
        weights = {name: copy_of(p) for name, p in kept_parameters(self.model).items()}
        average = None if self.average is None else {k: copy_of(x) for k, x in self.average.items()}
        moments = {name: copy_of(x) for name, x in self.moments.items()}
        if self.model.base:
            return Saved(self.model, moments, average, self.facts, weights)
        return Saved(with_weights(self.model, weights), moments, average, self.facts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        average = {} if self.average is None else self.average
        kept = kept_parameters(self.model).values()
        return sum(x.nbytes for x in (*kept, *self.moments.values(), *average.values()))

    def write(self, folder: Path) -> None:
        """Write all into a folder that exists."""
        self._write_model(folder, self.adapters)
        if self.average is not None:
            (folder / AVERAGE).mkdir()
            self._write_model(folder / AVERAGE, self.average)
        write(folder / OPTIMIZER, [(name, tuple(x.shape), x) for name, x in self.moments.items()])
        (folder / FACTS).write_text(json.dumps(dict(self.facts)) + "\n", encoding="utf-8")

    def _write_model(self, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
        """Write the model, or its adapters, with these weights; None for its own."""
        if self.model.base:
            weights = kept_parameters(self.model) if weights is None else weights
            write_adapter(self.model, family_of_model(self.model), folder, weights)
        else:
            write_model(self.model if weights is None else with_weights(self.model, weights), folder)


def copy_of(x: Tensor) -> Tensor:
    """Return a copy on the CPU."""
    return x.detach().to("cpu", copy=True)


def with_weights(model: HybridLM, weights: Mapping[str, Tensor], config: ModelConfig | None = None) -> HybridLM:
    """Return a model like this one that holds other weights, by parameter; no memory is copied.

    config: where attention stands elsewhere.
    """
    other = HybridLM(config or model.config, device="meta")
    other.tokenizer, other.source = model.tokenizer, model.source
    if model.config.tied_embeddings:
        other.head.weight = other.embedding.weight
    modules = dict(other.named_modules())
    for name, p in list(other.named_parameters()):
        owner, _, own = name.rpartition(".")
        setattr(modules[owner], own, nn.Parameter(weights[name].detach(), requires_grad=p.requires_grad))
    if model.config.tied_embeddings:
        other.head.weight = other.embedding.weight
    return other


def moments_of(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's moments as "key/parameter"."""
    state = optimizer.state
    return {
        f"{key}/{name}": state[p][key]
        for name, p in parameters.items()
        for key in MOMENTS
        if p in state and key in state[p]
    }


def take_moments(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor], step: int
) -> None:
    """Give the optimizer moments of "key/parameter", after so many steps."""
    for name, p in parameters.items():
        state = {key: moments[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in moments}
        if "exp_avg" in state:
            state["step"] = torch.tensor(float(step), device=p.device)
        if state:
            optimizer.state[p] = state


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the plain data of a checkpoint."""
    found: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return found


@torch.no_grad()
def read_weights(model: HybridLM, folder: Path, into: Mapping[str, Tensor]) -> None:
    """Read a checkpoint's weights, float32 as they were written, into tensors by parameter."""
    if is_adapter(folder):
        read_adapters(model, family_of_model(model), folder, into)
        return
    for name, theirs in load(folder, dtype=torch.float32).named_parameters():
        into[name].copy_(theirs)


def read_moments(parameters: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the moments that a checkpoint holds, as "key/parameter", each on its parameter's device."""
    found = {}
    for full, entry in read_header(folder / OPTIMIZER).items():
        found[full] = torch.empty_like(parameters[full.partition("/")[2]])
        read_into(entry, full, found[full])
    return found
