"""Where the rows of a published tensor lie in our parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from interlace.checkpoint.family import Slot

Shapes = Mapping[str, tuple[int, ...]]


def rows_of(parameter: Tensor, slot: Slot) -> Tensor:
    """Return the part of a parameter that a slot means, as [rows, last axis] unless it is all of it."""
    if slot.rows is None:
        return parameter
    return (parameter.flatten(0, -2) if parameter.ndim > 1 else parameter)[slice(*slot.rows)]


def row_count(slot: Slot, shapes: Shapes) -> int:
    """Return how many rows of its parameter a slot means."""
    first, *rest = shapes[slot.name]
    return math.prod((first, *rest[:-1])) if slot.rows is None else slot.rows[1] - slot.rows[0]


def published_shape(slots: tuple[Slot, ...], shapes: Shapes) -> tuple[int, ...]:
    """Return the shape under which the tensor of these slots is stored."""
    if len(slots) == 1 and slots[0].shape is not None:
        return slots[0].shape
    if len(slots) == 1 and slots[0].rows is None:
        return shapes[slots[0].name]
    return (sum(row_count(slot, shapes) for slot in slots), *shapes[slots[0].name][1:][-1:])
