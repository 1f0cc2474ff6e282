"""Decode at the cost of the kernels alone: the calls of the first step are captured, later steps replay them.

The model's own forward pass is captured, so nothing about a model is written twice. On a CPU, what is captured are the
calls of the native kernels; a pass that computes anything outside them (rotary positions) is run as usual. On a GPU it
is a CUDA graph (`graph`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.base.errors import BackendUnavailable, ShapeError
from interlace.base.segments import Segments
from interlace.generation.graph import Graph, GraphedStep, graphs_for
from interlace.layers.base import Stream
from interlace.model.model import HybridLM
from interlace.model.state import ModelState
from interlace.ops.core import kernels

UNTRIED = "no pass was made yet"

# What torch may do between kernel calls without computing: new buffers and views of old ones.
_HARMLESS = {
    "alias",
    "as_strided",
    "detach",
    "detach_",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "lift_fresh",
    "new_empty",
    "permute",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unsqueeze",
    "view",
    "_unsafe_view",
}


class _Foreign(TorchDispatchMode):
    """Notices every torch operation that computes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # an operation made of others is judged by them
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        name = func.overloadpacket.__name__
        if name not in _HARMLESS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Replayed(Protocol):
    """A step that was run once, and can be repeated for other tokens."""

    def prepare(self) -> str:
        """Do what is left to do before it can be repeated; return why it cannot be, or ""."""

    def replay(self, tokens: Tensor) -> Tensor:
        """Repeat it for tokens [N]; return logits [N, vocabulary], which the next one overwrites."""


class _KernelCalls:
    """The native kernels' calls of one step."""

    def __init__(self, model: HybridLM, rows: int):
        self.model, self.recording, self.logits = model, kernels.Recording(), model.embedding.weight
        self.x = model.embed(torch.zeros(rows, dtype=torch.int64, device=model.device))

    def first(self, tokens: Tensor, state: ModelState, segments: Segments) -> tuple[ModelState, str]:
        """Run the step and capture its calls; return the state after it, and why the calls are not all of it, or ""."""
        self._read(tokens)
        stream = Stream(segments, state.positions.to(self.model.device))
        with kernels.recording() as self.recording, _Foreign() as foreign:
            hidden, layers, _ = self.model.body(self.x, stream, state.use().layers)
            self.logits = self.model.logits(hidden)
        after = ModelState(layers, state.positions + 1, state.kinds)
        computed = ", ".join(sorted(set(foreign.found)))
        return after, f"the model computes {computed} outside the native kernels" if computed else ""

    def prepare(self) -> str:
        return ""

    def replay(self, tokens: Tensor) -> Tensor:
        self._read(tokens)
        self.recording.replay()
        return self.logits

    def _read(self, tokens: Tensor) -> None:
        """Write the input of the first layer into the memory that the recording reads."""
        weight, config = self.model.embedding.weight, self.model.config
        if config.embedding_multiplier == 1 and self.x.dtype == weight.dtype:
            torch.index_select(weight, 0, tokens, out=self.x)
        else:
            self.x.copy_(self.model.embed(tokens))


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
        self.graphs = graphs or graphs_for(model.device)
        self.replayed: Replayed | None = None
        self.reason = UNTRIED if self.graphs is not None or kernels.available() else kernels.missing
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
        if self.reason != UNTRIED:
            return self._plain(tokens)
        return self._by_kernels(tokens) if self.graphs is None else self._by_graph(tokens, self.graphs())

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
        if self.replayed is not None and not (isinstance(self.replayed, GraphedStep) and self.replayed.joined()):
            self.replayed, self.reason = None, UNTRIED
        self.room = self.state.room

    def _addresses(self) -> list[Any]:
        """Return the addresses and strides of the weights that a recording uses."""
        places: list[Any] = [None if (w := table[name]) is None else w.data_ptr() for table, name in self._weights]
        return places + [None if (w := table[name]) is None else w.stride() for table, name in self._squares]

    def _plain(self, tokens: Tensor) -> Tensor:
        logits, self.state = self.model(tokens, self.segments, self.state, last_only=True)
        return logits

    def _by_kernels(self, tokens: Tensor) -> Tensor:
        calls = _KernelCalls(self.model, self.state.count)
        self.state, self.reason = calls.first(tokens, self.state, self.segments)
        if not self.reason:
            self._keep(calls)
        return calls.logits

    def _by_graph(self, tokens: Tensor, graph: Graph) -> Tensor:
        try:
            step = GraphedStep(self.model, self.state, self.segments, graph)
        except BackendUnavailable as error:
            self.reason = str(error)
            return self._plain(tokens)
        logits = step.first(tokens)
        self.state.advance()
        self.reason = ""
        self._keep(step)
        return logits

    def _keep(self, step: Replayed) -> None:
        self.replayed, self.room, self._recorded = step, self.state.room, self._addresses()
