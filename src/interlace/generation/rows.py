"""Sequences that decode together and come and go at every step: a batch whose every row is what it would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from interlace.base.errors import BackendUnavailable
from interlace.base.segments import Segments
from interlace.generation.capture import Decoder
from interlace.generation.graph import GraphedStep, graphs_for
from interlace.generation.replay import CpuGraph, Shared
from interlace.model.model import HybridLM
from interlace.model.slots import Slots
from interlace.model.state import ModelState


class Rows(Protocol):
    """Sequences in rows 0 to count - 1."""

    @property
    def count(self) -> int:
        """How many there are."""

    def join(self, state: ModelState) -> int:
        """Take over a state of one sequence, which is used up; return its row, the last one."""

    def leave(self, rows: Sequence[int]) -> list[int]:
        """Forget sequences; return, for each row that is left, which row it was."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one token of each sequence; return logits [count, vocabulary], which the next step overwrites."""

    def put(self, row: int, state: ModelState) -> None:
        """Let a state of one sequence, which is used up, take the place of a row's."""

    def place(self, row: int) -> tuple[ModelState, int]:
        """Return the state of all rows, and which sequence of it a row is, to copy from."""


def rows_for(model: HybridLM, most: int) -> Rows:
    """Return rows for at most so many sequences of a model, the fastest that serve it."""
    if model.device.type == "cpu" and graphs_for(model)[0] is not None:
        try:
            return SlotRows(model, Slots(model, most))
        except BackendUnavailable:
            pass
    return JoinedRows(model)


class SlotRows:
    """Rows in memory whose addresses never change: a step of n rows is captured once, and replayed from then on."""

    def __init__(self, model: HybridLM, slots: Slots):
        """slots: without sequences."""
        self.model, self.slots = model, slots
        self._shared = Shared()
        self._logits = torch.empty(slots.size, model.config.vocabulary, dtype=model.dtype)
        self._steps: dict[int, tuple[GraphedStep, bool]] = {}  # by rows: the step, and whether it can be replayed

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return self.slots.count

    def join(self, state: ModelState) -> int:
        """See `Rows.join`."""
        with torch.inference_mode():
            return self.slots.join(state)

    def leave(self, rows: Sequence[int]) -> list[int]:
        """See `Rows.leave`; the last rows take the places of those that leave."""
        order = list(range(self.count))
        with torch.inference_mode():
            for row in sorted(rows, reverse=True):
                order[row] = order[self.slots.leave(row)]
                order.pop()
        return order

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Rows.step`."""
        ids = torch.tensor(tokens)
        if self.count in self._steps:
            step, replays = self._steps[self.count]
            return step.replay(ids) if replays else step.first(ids)
        view, logits = self.slots.first(self.count), self._logits[: self.count]
        step = GraphedStep(
            self.model, view, Segments.equal(self.count, 1), CpuGraph(self._shared), view.positions, logits
        )
        logits = step.first(ids)
        self._steps[self.count] = step, not step.prepare()
        return logits

    def put(self, row: int, state: ModelState) -> None:
        """See `Rows.put`."""
        with torch.inference_mode():
            self.slots.put(row, state)

    def place(self, row: int) -> tuple[ModelState, int]:
        """See `Rows.place`."""
        return self.slots.whole(), row


class JoinedRows:
    """Rows of one state, for every device and kind of layer.

    Who leaves is carried along until half of the rows have left, and who comes takes such a place: as long as the
    number of places stays, a graph that was captured for them serves on.
    """

    def __init__(self, model: HybridLM):
        """Begin without sequences."""
        self.model = model
        self._decoder: Decoder | None = None
        self._places: list[int] = []  # of each row in the state

    @property
    def count(self) -> int:
        """How many sequences there are."""
        return len(self._places)

    @torch.inference_mode()
    def join(self, state: ModelState) -> int:
        """See `Rows.join`."""
        if self._decoder is None:
            self._decoder, place = Decoder(self.model, state), 0
        else:
            count = self._decoder.state.count
            place = next((p for p in range(count) if p not in self._places), count)
            if place < count:
                self._decoder.join([place], state)
            else:
                self._decoder = Decoder(self.model, ModelState.concat([self._decoder.state, state]))
        self._places.append(place)
        return self.count - 1

    @torch.inference_mode()
    def leave(self, rows: Sequence[int]) -> list[int]:
        """See `Rows.leave`."""
        left = [row for row in range(self.count) if row not in set(rows)]
        self._places = [self._places[row] for row in left]
        if not left:
            self._decoder = None
        elif self._decoder is not None and 2 * len(left) <= self._decoder.state.count:
            self._decoder = Decoder(self.model, self._decoder.state.select(self._places))
            self._places = list(range(len(left)))
        return left

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Rows.step`."""
        assert self._decoder is not None
        given = [0] * self._decoder.state.count
        for place, token in zip(self._places, tokens, strict=True):
            given[place] = token
        logits = self._decoder.step(torch.tensor(given, device=self.model.device))
        whole = self._places == list(range(len(given)))
        return logits if whole else logits[torch.tensor(self._places, device=logits.device)]

    @torch.inference_mode()
    def put(self, row: int, state: ModelState) -> None:
        """See `Rows.put`."""
        assert self._decoder is not None
        self._decoder.join([self._places[row]], state)

    def place(self, row: int) -> tuple[ModelState, int]:
        """See `Rows.place`."""
        assert self._decoder is not None
        return self._decoder.state, self._places[row]
