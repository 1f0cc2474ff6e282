"""Decode at the cost of the computation alone: the first step is captured as a graph, later steps replay it.

The model's own forward pass is captured, so nothing about a model is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import BackendUnavailable, ShapeError
from interlace.base.segments import Segments
from interlace.generation.graph import Graph, GraphedStep, graphs_for
from interlace.model.model import HybridLM
from interlace.model.state import ModelState

UNTRIED = "no pass was made yet"


class Decoder:
    """N sequences that advance one token at a time; if passes are replayed, nothing is allocated per token.

    Attributes:
        reason: why passes are run and not replayed; "" once they are.
    """

    def __init__(self, model: HybridLM, state: ModelState, graphs: Callable[[], Graph] | None = None):
        """Take over a state.

        model: packed for decoding or not.
        state: used up.
        graphs: makes graphs for steps on this device; None for what the device has.
        """
        state.check_kinds(model.kinds)
        self.model, self.state = model, ModelState(state.use().layers, state.positions.clone(), state.kinds)
        made, reason = graphs_for(model)
        self.graphs = graphs or made
        self.replayed: GraphedStep | None = None
        self.reason = reason if self.graphs is None else UNTRIED
        self.segments = Segments.equal(state.count, 1)
        self.room = 0  # replays until a cache is full
        tables = [module._parameters for module in model.modules()]
        self._weights: list[Any] = [(t, name) for t in tables for name in t]
        squares = [(t, n) for t, n in self._weights if t[n] is not None and len(set(t[n].shape)) == 1 < t[n].ndim]
        self._squares: list[Any] = squares  # whose transpose is another matrix in the same memory
        self._recorded: list[Any] = []

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Return logits [N, vocabulary] after one more token [N] of each sequence; the next step overwrites them.

        Tokens on a GPU are not looked at: there, one outside the vocabulary stops the process.
        """
        if tokens.shape != (self.state.count,):
            raise ShapeError(f"tokens: must be [{self.state.count}], one per sequence, got {list(tokens.shape)}")
        if tokens.device.type == "cpu":
            self.model.check_tokens(tokens)
        if self.replayed is not None and (self.room == 0 or self._addresses() != self._recorded):
            self.replayed, self.reason = None, UNTRIED  # the caches are full, or weights were replaced: a pass first
        if self.replayed is not None and (reason := self.replayed.prepare()):
            self.replayed, self.reason = None, reason
        if self.replayed is not None:
            self.room -= 1
            self.state.advance()  # the states are changed in place
            return self.replayed.replay(tokens)
        if self.reason != UNTRIED or self.graphs is None:
            return self._plain(tokens)
        return self._by_graph(tokens, self.graphs())

    @torch.inference_mode()
    def join(self, rows: Sequence[int], state: ModelState) -> None:
        """Put other sequences in the place of these rows; a graph serves on if its caches are long enough for them.

        So one graph serves as many sequences as come, up to its number of rows at a time.

        Args:
            rows: which ones, as many as the other state has.
            state: what the sequences have seen; it may be used on.

        Raises:
            StateUsed, ShapeError: as `ModelState.write`.
        """
        self.state.write(rows, state)
        if self.replayed is not None and not self.replayed.joined():
            self.replayed, self.reason = None, UNTRIED
        self.room = self.state.room

    def _addresses(self) -> list[Any]:
        """Return the addresses and strides of the weights that a recording uses."""
        places: list[Any] = [None if (w := table[name]) is None else w.data_ptr() for table, name in self._weights]
        return places + [None if (w := table[name]) is None else w.stride() for table, name in self._squares]

    def _plain(self, tokens: Tensor) -> Tensor:
        logits, self.state = self.model(tokens, self.segments, self.state, last_only=True)
        return logits

    def _by_graph(self, tokens: Tensor, graph: Graph) -> Tensor:
        try:
            step = GraphedStep(self.model, self.state, self.segments, graph)
        except BackendUnavailable as error:
            self.reason = str(error)
            return self._plain(tokens)
        logits = step.first(tokens)
        self.state.advance()
        self.reason = ""
        self.replayed, self.room, self._recorded = step, self.state.room, self._addresses()
        return logits
