"""One decoding step as a graph, CUDA's or a CPU's (`replay`): token ids in, logits out, states changed where they lie.

A graph repeats the launches of a step at the same addresses. So the step reads tokens and positions from the device,
counts the positions itself, and ends by writing the states that its layers returned into the memory of those it got.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.generation.replay import CpuGraph
from interlace.layers.base import Stream
from interlace.model.model import HybridLM
from interlace.ops.core import kernels
from interlace.ops.core.tables import on_device

VARIABLE = "INTERLACE_GRAPHS"  # "off": steps are run, not replayed


class Graph(Protocol):
    """The launches of a function, to be repeated.

    Attributes:
        masks: whether steps mask what caches hold no token in, and so read it. The CPU's kernel reads no such place:
            memory that nobody has touched stays free.
    """

    masks: bool

    def warm(self, run: Callable[[], None]) -> None:
        """Run a function beside what the device does, as it must have run once before it is captured."""

    def capture(self, run: Callable[[], None]) -> None:
        """Record a function's launches, which are not run; raises RuntimeError where that is impossible."""

    def replay(self) -> None:
        """Repeat the launches."""


class CudaGraph:
    """A graph of CUDA's."""

    masks = True

    def __init__(self, device: torch.device):
        """device: where everything lies."""
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    def warm(self, run: Callable[[], None]) -> None:
        """Run the function on a stream of its own."""
        with torch.cuda.device(self.device):
            side = _side(self.device)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream().wait_stream(side)

    def capture(self, run: Callable[[], None]) -> None:
        """Record the function; other threads may go on with their work.

        torch's own stream for captures lies on the first GPU that made one. A capture that fails leaves it current.
        """
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(self.graph, stream=_side(self.device), capture_error_mode="thread_local"):
                    run()
            finally:
                torch.cuda.set_stream(before)

    def replay(self) -> None:
        """Launch all at once."""
        with torch.cuda.device(self.device):
            self.graph.replay()


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def graphs_for(model: HybridLM) -> tuple[Callable[[], Graph] | None, str]:
    """Return what makes graphs for the steps of a model, and ""; or None, and why there are none."""
    device = model.device
    if os.environ.get(VARIABLE) == "off":
        return None, f"{VARIABLE}=off"
    if device.type == "cuda":
        return lambda: CudaGraph(device), ""
    if device.type != "cpu":
        return None, f"there are no graphs for {device.type}"
    if not kernels.available():
        return None, kernels.missing
    if model.dtype not in kernels.DTYPES:
        return None, f"the kernels take float32 and bfloat16, not {str(model.dtype).removeprefix('torch.')}"
    return CpuGraph, ""


class Steps(Protocol):
    """The states that a step reads and changes in place."""

    @property
    def count(self) -> int:
        """N, the number of sequences."""

    @property
    def positions(self) -> Tensor:
        """int64 [N], tokens that each has seen."""

    def on_device(self, places: Tensor) -> list[Any]:
        """As `ModelState.on_device`."""

    def make_ready(self, clear: bool = True) -> None:
        """As `ModelState.make_ready`."""

    def take(self, after: Sequence[Any]) -> None:
        """As `ModelState.take`."""

    def tensors(self) -> list[Tensor]:
        """As `ModelState.tensors`."""


class GraphedStep:
    """One step of N sequences at fixed addresses; it is captured when it is needed for a second time.

    Attributes:
        logits: [N, vocabulary], overwritten by each step.
    """

    def __init__(
        self,
        model: HybridLM,
        state: Steps,
        segments: Segments,
        graph: Graph,
        places: Tensor | None = None,
        logits: Tensor | None = None,
    ):
        """Capture nothing yet.

        Args:
            state: changed in place by each step; its positions on the host are the caller's to count.
            places: int64 [N] on the device, which each step counts on; None for a copy of the state's positions.
            logits: [N, vocabulary] to write into; None for a tensor of the step's own.

        Raises:
            BackendUnavailable: the step of a layer needs positions on the host.
        """
        state.on_device(state.positions)  # a layer that cannot go says so before anything is changed
        state.make_ready(graph.masks)
        self.model, self.state, self.segments, self.graph = model, state, segments, graph
        self.tokens = torch.zeros(state.count, dtype=torch.int64, device=model.device)
        self.places = on_device(state.positions.clone(), model.device).clone() if places is None else places
        self.held = [x.data_ptr() for x in state.tensors()]
        self.captured = False
        shape = (state.count, model.config.vocabulary)
        self.logits = torch.empty(shape, dtype=model.dtype, device=model.device) if logits is None else logits

    def first(self, tokens: Tensor) -> Tensor:
        """Run the step as it is, which compiles and checks its kernels."""
        self.tokens.copy_(tokens, non_blocking=True)
        self.graph.warm(self._run)
        return self.logits

    def prepare(self) -> str:
        """Capture the step if that is not done yet; return why it is impossible, or ""."""
        if not self.captured:
            try:
                self.graph.capture(self._run)
            except RuntimeError as error:
                lines = str(error).strip().splitlines() or [""]
                return f"the step cannot be captured as a graph: {type(error).__name__}: {lines[0]:.200}"
            self.captured = True
        return ""

    def replay(self, tokens: Tensor) -> Tensor:
        """Repeat the step for other tokens."""
        self.tokens.copy_(tokens, non_blocking=True)
        self.graph.replay()
        return self.logits

    def joined(self) -> bool:
        """Read the positions of sequences that came into the state; return whether all lies where it lay."""
        self.state.make_ready(self.graph.masks)
        self.places.copy_(on_device(self.state.positions.clone(), self.model.device))
        return [x.data_ptr() for x in self.state.tensors()] == self.held

    def _run(self) -> None:
        stream = Stream(self.segments, self.places)
        hidden, after, _ = self.model.body(self.model.embed(self.tokens), stream, self.state.on_device(self.places))
        self.logits.copy_(self.model.logits(hidden))
        self.state.take(after)
        self.places += 1
