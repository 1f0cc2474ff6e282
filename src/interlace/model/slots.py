"""Memory for sequences that decode together on a CPU and come and go one by one, at addresses that never change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.model.model import HybridLM
from interlace.model.state import ModelState


class Slots:
    """Up to `size` sequences of one model; those that are there hold the first `count` slots, without gaps.

    Attributes:
        size: the most at a time.
        count: how many are there.
        positions: int64 [size], how many tokens each has seen.
    """

    def __init__(self, model: HybridLM, size: int):
        """Allocate the recurrent states of all slots; caches come with the sequences.

        Raises:
            BackendUnavailable: a step of one of the layers needs positions on the host.
        """
        empty = model.empty_state(1)
        self.size, self.count, self.kinds = size, 0, model.kinds
        self.layers: list[Any] = [None if layer is None else layer.in_rows(size) for layer in empty.layers]
        self.positions = torch.zeros(size, dtype=torch.int64)

    def join(self, state: ModelState) -> int:
        """Take over the state of one sequence, which is used up; return its slot.

        Raises:
            ShapeError: all slots are taken, or it is another model's state. StateUsed: it was used up.
        """
        if self.count == self.size or state.count != 1:
            raise ShapeError(f"slots: {self.count} of {self.size} are taken, and {state.count} sequences come")
        self.put(self.count, state)
        self.count += 1
        return self.count - 1

    def put(self, slot: int, state: ModelState) -> None:
        """Let a state of one sequence, which is used up, take a slot.

        Raises:
            ShapeError: it is another model's state. StateUsed: it was used up.
        """
        state.check_kinds(self.kinds)
        for ours, theirs in zip(self.layers, state.use().layers, strict=True):
            if ours is not None:
                ours.place(slot, theirs)
        self.positions[slot] = state.positions[0]

    def leave(self, slot: int) -> int:
        """Forget a sequence; return the slot of the one that has its place now, which is `slot` if it was the last."""
        last = self.count - 1
        for layer in self._layers():
            if last != slot:
                layer.move(last, slot)
            layer.clear(last)
        if last != slot:
            self.positions[slot] = self.positions[last]
        self.positions[last] = 0
        self.count = last
        return last

    def whole(self) -> ModelState:
        """Return the state of all slots, to copy sequences from."""
        return ModelState(self.layers, self.positions, self.kinds)

    def first(self, rows: int) -> FirstSlots:
        """Return the first sequences, for a step that changes them in place."""
        return FirstSlots(self, rows)

    def tensors(self) -> list[Tensor]:
        """Return all tensors that the layers hold."""
        return [x for layer in self._layers() for x in layer.tensors()]

    def _layers(self) -> list[Any]:
        return [layer for layer in self.layers if layer is not None]


class FirstSlots:
    """The first `count` sequences of slots, as a step reads them."""

    def __init__(self, slots: Slots, count: int):
        """slots: whose memory it is."""
        self.slots, self.count, self.positions = slots, count, slots.positions[:count]
        self._views = self.on_device(self.positions)

    def on_device(self, places: Tensor) -> list[Any]:
        """Return views of the layers' states; places: int64 [count], which the views read."""
        return [None if layer is None else layer.first(self.count, places) for layer in self.slots.layers]

    def make_ready(self, clear: bool = True) -> None:
        """Do nothing: who comes brings space for all its tokens."""

    def take(self, after: Sequence[Any]) -> None:
        """Copy the states after a step into the memory of these, where it was not written in place."""
        for ours, theirs in zip(self._views, after, strict=True):
            if ours is not None:
                ours.take(theirs)

    def tensors(self) -> list[Tensor]:
        """Return nothing: what a step reads is found by its table."""
        return []
