"""The workers that train one model together, as the trainer knows them; here, one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from interlace.data.batches import Batch, parts
from interlace.layers.low_rank import kept_parameters
from interlace.model.model import HybridLM
from interlace.runs.background import Background
from interlace.runs.machine import free_bytes
from interlace.runs.training import TrainingRun
from interlace.train.muon import Momentum, Orthogonalise, here
from interlace.train.optimizer import Route, routes
from interlace.train.recipe import Recipe
from interlace.train.saved import AVERAGE, STATE, Saved, read_moments, read_weights

T = TypeVar("T")


class Alone:
    """One worker, which holds the whole model and reads every batch whole.

    Attributes:
        first: whether this is the worker that logs and writes.
        count: how many there are.
        reader: (which of those that read different tokens this worker is, how many they are).
    """

    first = True
    count = 1
    reader: tuple[int, int] = (0, 1)

    def prepare(self, model: HybridLM) -> None:
        """Cut a model's weights, which every worker has drawn or read alike, so that this worker holds its part."""

    def shares(self, batch: Batch, accumulate: int) -> list[Batch]:
        """Return what this worker reads of a step's batch, in so many parts."""
        return parts(batch, accumulate)

    def local(self, x: Tensor) -> Tensor:
        """Return what lies here of a parameter, a gradient or a moment; the same memory."""
        return x

    def routes(self, model: nn.Module, optimizer: str) -> dict[str, Route]:
        """Return which optimizer moves which parameter."""
        return routes(model, optimizer)

    def begin(self, recipe: Recipe) -> None:
        """Take up a recipe, before its model is prepared."""

    def before_part(self, model: nn.Module, last: bool) -> None:
        """Prepare for the forward and backward pass of a part of a batch; `last` of its parts or not."""

    def reshard(self, model: nn.Module) -> None:
        """Give up what a pass without gradients has gathered."""

    def first_does(self, work: Callable[[], T]) -> T:
        """Return what the first worker finds, on all workers; raise its error on all."""
        return work()

    def check_common(self, folder: Path) -> None:
        """Raise RunError unless all workers see one folder."""

    def agree(self, what: str, value: str) -> None:
        """Raise ConfigError, naming the worker, unless all workers have the same."""

    def heads(self, x: Tensor) -> Tensor:
        """Return what all workers have that divide a layer, side by side along the last axis."""
        return x

    def write(self, run: TrainingRun, saved: Saved, step: int, background: Background, last: bool) -> None:
        """Write a checkpoint: from a copy while training goes on, where there is memory for one.

        last: whether it is the last one of its run, which is a model to load whoever wrote it.
        """
        background.wait()
        if 2 * saved.nbytes > free_bytes():
            run.write_checkpoint(step, saved.write)
            return
        copy = saved.copied()
        background.start(lambda: run.write_checkpoint(step, copy.write))

    def read(self, folder: Path, saved: Saved) -> dict[str, Tensor]:
        """Fill a model, and the average of its weights, from a checkpoint; return the moments, as "key/parameter"."""
        if (folder / STATE).is_dir():
            from interlace.train.cut import state

            return state.read(saved, folder / STATE, state.layouts_alone(saved.model))
        read_weights(saved.model, folder, kept_parameters(saved.model))
        if saved.average is not None:  # one that was not kept before begins with the weights
            read_weights(saved.model, folder / AVERAGE if (folder / AVERAGE).is_dir() else folder, saved.average)
        return read_moments({**dict(saved.model.named_parameters()), **saved.beside}, folder)

    def finish(self, model: HybridLM) -> None:
        """Complete the gradients that this worker knows in part."""

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the workers that read different tokens."""
        return x

    def over_model(self, x: Tensor) -> Tensor:
        """Return the sum over the workers that hold one model together."""
        return x

    def norm(self, model: HybridLM) -> Tensor:
        """Return the norm of the whole gradient."""
        return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def orthogonalise(
        self, weights: Sequence[nn.Parameter], momentum: Momentum, whole: Orthogonalise
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Orthogonalise whole matrices; yield each with what lies here of its direction."""
        return here(weights, momentum, whole)
