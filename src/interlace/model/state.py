"""The state that a model carries for N sequences between calls."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.state import UsedOnce
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.layer_state import UNLIMITED, LayerState


@dataclass
class ModelState(UsedOnce):
    """One state per layer, and how many tokens each sequence has seen.

    A state is used up by the call it is given to, and raises StateUsed where it is used again: keep a copy (`fork`,
    `select`) of what will be needed again.
    A copy is exact at its own position only, so reuse of a prefix is "start from a copy, replay the rest".

    Attributes:
        layers: the layers' states, in order; each has named fields.
        positions: int64 [N], tokens seen.
        kinds: the configs of the model's layers, by which another model's state is known.
    """

    layers: list[LayerState | None]
    positions: Tensor
    kinds: tuple[Any, ...]

    def check_kinds(self, kinds: tuple[Any, ...]) -> None:
        """Raise ShapeError for a state of a model whose layers are others."""
        if self.kinds is not kinds and self.kinds != kinds:
            raise ShapeError(
                "state: is another model's, whose layers differ from this one's; start from model.empty_state(rows)"
            )

    @property
    def count(self) -> int:
        """N, the number of sequences."""
        return self.positions.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated by all layers."""
        return sum(s.nbytes for s in self._states())

    @property
    def room(self) -> int:
        """How many more tokens of each sequence fit without larger caches."""
        return min((s.room for s in self._states()), default=UNLIMITED)

    def tensors(self) -> list[Tensor]:
        """Return all tensors that the layers hold."""
        return [x for s in self._states() for x in s.tensors()]

    def advance(self) -> None:
        """Count one more token of each sequence, which a replayed step has written in place already."""
        self.positions += 1
        for state in self._states():
            state.advance()

    def on_device(self, places: Tensor) -> list[Any]:
        """Return views of the layers' states, for one step whose positions are `places`, int64 [N] on the device.

        Space for its tokens must be there, and what holds none must be zeros: see `make_ready`.

        Raises:
            BackendUnavailable: a layer's step needs positions on the host.
        """
        return [s if s is None else s.on_device(places) for s in self.layers]

    def make_ready(self, clear: bool = True) -> None:
        """Allocate space for one more token of each sequence, where there is none.

        clear: fill what holds no token with zeros, for a step that masks it and so multiplies it by 0.
        """
        for state in self._states():
            state.grow()
            if clear:
                state.clear_unseen()

    def take(self, after: Sequence[Any]) -> None:
        """Copy the layers' states after a step into the memory of these, where it was not written in place."""
        for ours, theirs in zip(self.layers, after, strict=True):
            if ours is not None:
                ours.take(theirs)

    def _states(self) -> list[LayerState]:
        return [s for s in self.layers if s is not None]

    def select(self, rows: Sequence[int]) -> ModelState:
        """Return a copy that holds these sequences, in this order; a row may repeat.

        Raises:
            StateUsed: the state was used up.
            ShapeError: there is no such row.
        """
        self.check_unused()
        rows = self._checked(rows)
        index = torch.as_tensor(rows, dtype=torch.int64)
        return ModelState([s if s is None else s.select(rows) for s in self.layers], self.positions[index], self.kinds)

    def _checked(self, rows: Sequence[int]) -> list[int]:
        """Return rows counted from 0, all checked."""
        try:
            rows = [operator.index(row) for row in rows]
        except TypeError:
            raise ShapeError(f"rows: must be a list of integers, got {rows!r:.80}") from None
        if not rows:
            raise ShapeError("rows: must name at least one sequence")
        if wrong := [r for r in rows if not -self.count <= r < self.count]:
            raise ShapeError(f"rows: must lie below {self.count}, the number of sequences, got {wrong[0]}")
        return [r % self.count for r in rows]

    def write(self, rows: Sequence[int], other: ModelState) -> None:
        """Replace these rows, in place, by the sequences of another state; the other may be used on too.

        Raises:
            StateUsed: one of the two was used up.
            ShapeError: there is no such row, they are not as many as the other's sequences, or the other is a state of
                another model.
        """
        self.check_unused()
        other.check_unused()
        other.check_kinds(self.kinds)
        rows = self._checked(rows)
        if len(rows) != other.count or len(set(rows)) < len(rows):
            raise ShapeError(f"rows: must name {other.count} different sequences, as many as are written, got {rows}")
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            if ours is not None and theirs is not None:
                ours.write(rows, theirs)
        self.positions[torch.as_tensor(rows, dtype=torch.int64)] = other.positions

    def fork(self, row: int) -> ModelState:
        """Return a copy of one sequence, to continue from independently."""
        return self.select([row])

    def one(self, row: int, reserve_tokens: int = 0, growing: bool = True) -> ModelState:
        """Return a copy of one sequence that takes no more memory than it needs.

        Args:
            row: which one.
            reserve_tokens: that its caches have space for.
            growing: copy the tokens of growing caches too; else the caller fills these.

        Raises:
            StateUsed: the state was used up. ShapeError: there is no such row.
        """
        self.check_unused()
        (row,) = self._checked([row])
        seen = int(self.positions[row])
        layers = [s if s is None else s.one(row, seen, reserve_tokens, growing) for s in self.layers]
        return ModelState(layers, torch.tensor([seen]), self.kinds)

    def growing(self) -> list[AttentionState]:
        """Return the caches that grow with every token, in order: those of attention that sees all tokens."""
        return [cache for s in self._states() for cache in s.growing()]

    @staticmethod
    def concat(states: Sequence[ModelState]) -> ModelState:
        """Return the sequences of several states of one model, in order.

        Raises:
            StateUsed: one of them was used up. ShapeError: there is none, or they are states of different models.
        """
        if not states:
            raise ShapeError("states: must hold at least one")
        for state in states:
            state.check_unused()
            state.check_kinds(states[0].kinds)
        by_layer = zip(*(s.layers for s in states), strict=True)
        layers = [None if some[0] is None else type(some[0]).concat(some) for some in by_layer]
        return ModelState(layers, torch.cat([s.positions for s in states]), states[0].kinds)
