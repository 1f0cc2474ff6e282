"""What a model carries for N sequences between calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import ShapeError, StateUsed
from interlace.layers.base import LayerState


@dataclass
class ModelState:
    """One state per layer, and how many tokens each sequence has seen.

    A state is used up by the call it is given to, and raises StateUsed where it is used again: keep a copy (`fork`,
    `select`) of what will be needed again.
    A copy is exact at its own position only, so reuse of a prefix is "start from a copy, replay the rest".

    Attributes:
        layers: the layers' states, in order; each has named fields.
        positions: int64 [N], tokens seen.
    """

    layers: list[Any]
    positions: Tensor
    _used: bool = field(default=False, repr=False)

    def use(self) -> ModelState:
        """This state, used up.

        Raises:
            StateUsed: it was before.
        """
        self._check_unused()
        self._used = True
        return self

    def _check_unused(self) -> None:
        if self._used:
            raise StateUsed(
                "state: was used up by an earlier call, which may have written over it; go on from the state that "
                "call returned, or keep a copy (state.fork, state.select) before it"
            )

    @property
    def count(self) -> int:
        """N, the number of sequences."""
        return self.positions.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated by all layers."""
        states: list[LayerState] = [s for s in self.layers if s is not None]
        return sum(s.nbytes for s in states)

    def select(self, rows: Sequence[int]) -> ModelState:
        """A copy that holds these sequences, in this order; a row may repeat.

        Raises:
            StateUsed: the state was used up.
            ShapeError: there is no such row.
        """
        self._check_unused()
        if not len(rows):
            raise ShapeError("rows: must name at least one sequence")
        if wrong := [r for r in rows if not -self.count <= r < self.count]:
            raise ShapeError(f"rows: must lie below {self.count}, the number of sequences, got {wrong[0]}")
        rows = [r % self.count for r in rows]
        index = torch.as_tensor(rows, dtype=torch.int64)
        return ModelState([s if s is None else s.select(rows) for s in self.layers], self.positions[index])

    def fork(self, row: int) -> ModelState:
        """A copy of one sequence, to go on from independently."""
        return self.select([row])

    @staticmethod
    def concat(states: Sequence[ModelState]) -> ModelState:
        """The sequences of several states of one model, in order.

        Raises:
            StateUsed: one of them was used up. ShapeError: there is none.
        """
        if not states:
            raise ShapeError("states: must hold at least one")
        for state in states:
            state._check_unused()
        by_layer = zip(*(s.layers for s in states), strict=True)
        layers = [None if some[0] is None else type(some[0]).concat(some) for some in by_layer]
        return ModelState(layers, torch.cat([s.positions for s in states]))
