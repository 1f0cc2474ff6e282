"""The workers that train one model together, as the trainer knows them; here, one alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from interlace.data.batches import Batch, parts
from interlace.model.model import HybridLM
from interlace.train.muon import Orthogonalise, here


class Alone:
    """One worker, which holds the whole model and reads every batch whole.

    Attributes:
        first: whether this is the worker that logs and writes.
    """

    first = True

    def shares(self, batch: Batch, accumulate: int) -> list[Batch]:
        """Return what this worker reads of a step's batch, in so many parts."""
        return parts(batch, accumulate)

    def local(self, x: Tensor) -> Tensor:
        """Return what lies here of a parameter, a gradient or a moment; the same memory."""
        return x

    def finish(self, model: HybridLM) -> None:
        """Complete the gradients that this worker knows in part."""

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the workers that read different tokens."""
        return x

    def norm(self, model: HybridLM) -> Tensor:
        """Return the norm of the whole gradient."""
        return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def orthogonalise(
        self, weights: Sequence[nn.Parameter], momenta: Sequence[Tensor], whole: Orthogonalise
    ) -> Sequence[Tensor]:
        """Orthogonalise whole matrices; return what lies here of each."""
        return here(weights, momenta, whole)

    def settle(self) -> None:
        """Wait for what is written in the background."""
