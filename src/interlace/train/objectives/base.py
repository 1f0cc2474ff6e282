"""The base of objectives: an objective is a function of a model and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.data.batches import Batch
from interlace.layers.moe import Load
from interlace.model.model import HybridLM, Pass
from interlace.ops.core.tables import on_device


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


def read_at(model: HybridLM, tokens: Tensor, segments: Segments, precision: str) -> Pass:
    """Return one pass over tokens, which are brought to the model's device, with products of this precision."""
    device, low = model.device, precision != "float32"
    with torch.autocast(device.type, dtype=getattr(torch, precision)) if low else nullcontext():
        return model.read(on_device(tokens, device), segments)


Objective = Callable[[HybridLM, Batch], Loss]
