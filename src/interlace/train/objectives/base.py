"""The base of objectives: an objective is a function of a model and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
        more: other numbers to log, by name; those of the parts of a batch add up to its own.
    """

    value: Tensor
    minimised: Tensor
    loads: Sequence[Load | None]
    more: Mapping[str, Tensor] = field(default_factory=dict)


Objective = Callable[[HybridLM, Batch], Loss]
