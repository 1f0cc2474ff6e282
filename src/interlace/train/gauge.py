"""What a run measures of its device: the share of its rate that training reaches, and memory beside the prediction."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from interlace.model.precision import choose_precision, matmul_flops_per_second
from interlace.model.sizes import sizes
from interlace.train.memory import Footprint, footprint
from interlace.train.recipe import Recipe


def flops_share(recipe: Recipe) -> float:
    """Return the share of all weights' FLOPs that training takes: beside adapters, weights have no gradients."""
    return 1.0 if recipe.train.lora is None else 2 / 3


@dataclass(frozen=True)
class Gauge:
    """The measures of one run.

    Attributes:
        device: of the run.
        flops_per_token: of training, at the recipe's length.
        flops_per_second: of a large matrix product in the run's precision.
        footprint: what the model's parts take; None where the GPU had too little memory to measure it.
        predicted_bytes: the peak of memory; 0 where it is not known.
        workers: among which the tokens are divided.
    """

    device: torch.device
    flops_per_token: float
    flops_per_second: float
    footprint: Footprint | None
    predicted_bytes: int
    workers: int = 1

    @staticmethod
    def of(recipe: Recipe, device: str, workers: int = 1) -> Gauge | None:
        """Measure a device before a run, a GPU's memory too; None where neither can be measured."""
        place = torch.device(device)
        if place.type not in ("cpu", "cuda"):
            return None
        precision, length = choose_precision(recipe.train.precision, place), recipe.data.length
        more = (512,) if place.type == "cpu" else ()  # as `choose_precision` has measured it already
        rate = matmul_flops_per_second(getattr(torch, precision), str(place), *more)
        flops = sizes(recipe.model, (length,)).training_flops_per_token[length] * flops_share(recipe)
        if place.type == "cpu":
            return Gauge(place, flops, rate, None, 0, workers)
        parts: Footprint | None = None
        with suppress(torch.OutOfMemoryError):  # the run itself will say so
            parts = footprint(recipe.model, length, place, precision, recipe.train)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)
        predicted = parts.of(recipe).peak if parts is not None and workers == 1 else 0
        return Gauge(place, flops, rate, parts, predicted, workers)

    def row(self, tokens_per_second: float) -> dict[str, float]:
        """Return what a line of metrics.jsonl holds of these; the host does not wait for it."""
        share = self.flops_per_token * tokens_per_second / self.workers / self.flops_per_second
        return {"flops_utilisation": share, "peak_memory_bytes": self.used_bytes}

    @property
    def used_bytes(self) -> int:
        """The most memory that tensors took at once since the run began; on a CPU, that this process ever took."""
        if self.device.type == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
        return torch.cuda.max_memory_allocated(self.device)

    def facts(self) -> dict[str, Any]:
        """Return what run.toml holds of these."""
        known = {"predicted_memory_bytes": self.predicted_bytes} if self.predicted_bytes else {}
        return {"matmul_flops_per_second": self.flops_per_second, **known}
