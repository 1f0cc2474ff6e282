"""Decode at the cost of the kernels alone: the calls of the first step are captured, later steps replay them.

The model's own forward pass is captured, so nothing about a model is written twice. A pass that computes anything
outside the native kernels (rotary positions, another device) cannot be replayed, and is run as usual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
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


class Decoder:
    """N sequences that advance one token at a time; if passes are replayed, nothing is allocated per token.

    Attributes:
        reason: why passes are run and not replayed; "" once they are.
    """

    def __init__(self, model: HybridLM, state: ModelState):
        """model: packed for decoding or not; state: used up."""
        state.check_kinds(model.kinds)
        self.model, self.state = model, ModelState(state.use().layers, state.positions.clone(), state.kinds)
        self.recording: kernels.Recording | None = None
        self.reason = UNTRIED if kernels.available() else kernels.missing
        self.segments = Segments.equal(state.count, 1)
        self.x = model.embed(torch.zeros(state.count, dtype=torch.int64, device=model.device))
        self.logits: Tensor
        self.room = 0  # replays until a cache is full
        tables = [module._parameters for module in model.modules()]
        self._weights: list[Any] = [(t, name) for t in tables for name in t]
        squares = [(t, n) for t, n in self._weights if t[n] is not None and len(set(t[n].shape)) == 1 < t[n].ndim]
        self._squares: list[Any] = squares  # whose transpose is another matrix in the same memory
        self._recorded: list[Any] = []

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Return logits [N, vocabulary] after one more token [N] of each sequence; the next step overwrites them."""
        if tokens.shape != (self.state.count,):
            raise ShapeError(f"tokens: must be [{self.state.count}], one per sequence, got {list(tokens.shape)}")
        self.model.check_tokens(tokens)
        if self.recording is not None and (self.room == 0 or self._addresses() != self._recorded):
            self.recording, self.reason = None, UNTRIED  # the caches are full, or weights were replaced: a pass first
        if self.recording is not None:
            self.room -= 1
            self.state.advance()  # the kernels change the states in place
            self._read(tokens)
            self.recording.replay()
            return self.logits
        if self.reason == UNTRIED:
            return self._first(tokens)
        logits, self.state = self.model(tokens, self.segments, self.state, last_only=True)
        return logits

    def _read(self, tokens: Tensor) -> None:
        """Write the input of the first layer into the memory that the recording reads."""
        weight, config = self.model.embedding.weight, self.model.config
        if config.embedding_multiplier == 1 and self.x.dtype == weight.dtype:
            torch.index_select(weight, 0, tokens, out=self.x)
        else:
            self.x.copy_(self.model.embed(tokens))

    def _addresses(self) -> list[Any]:
        """Return the addresses and strides of the weights that a recording uses."""
        places: list[Any] = [None if (w := table[name]) is None else w.data_ptr() for table, name in self._weights]
        return places + [None if (w := table[name]) is None else w.stride() for table, name in self._squares]

    def _first(self, tokens: Tensor) -> Tensor:
        self._read(tokens)
        stream = Stream(self.segments, self.state.positions.to(self.model.device))
        with kernels.recording() as recording, _Foreign() as foreign:
            hidden, layers, _ = self.model.body(self.x, stream, self.state.use().layers)
            self.logits = self.model.logits(hidden)
        self.state = ModelState(layers, self.state.positions + 1, self.state.kinds)
        self.reason = f"the model computes {', '.join(sorted(set(foreign.found)))} outside the native kernels"
        self.room = self.state.room
        if not foreign.found:
            self.recording, self.reason = recording, ""
            self._recorded = self._addresses()
        return self.logits
