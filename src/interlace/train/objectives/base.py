"""The base of objectives: an objective is a function of a model and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from interlace.data.batches import Batch
from interlace.layers.moe import Load
from interlace.model.model import HybridLM


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    Attributes:
        value: what is logged, in nats per token.
        minimised: what gradients are taken of: the value and, with experts, their auxiliary loss.
        loads: of each block's experts; None for a block without.
    """

    value: Tensor
    minimised: Tensor
    loads: Sequence[Load | None]


Objective = Callable[[HybridLM, Batch], Loss]
