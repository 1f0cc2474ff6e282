"""Predict how much memory a prompt takes, by a dry run.

The model's own forward pass runs on the meta device, where tensors have sizes and no memory. Every tensor is counted
while it is alive.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.base.segments import Segments
from interlace.layers.base import Stream
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were at once."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """known: storages that are alive already and are not counted."""
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in known}
        self.holders: Counter[int] = Counter()
        self.bytes = self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch's compiler unimported."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self._hold(x)
        extra = WORKSPACE.get(func.overloadpacket.__name__)
        self.peak = max(self.peak, self.bytes + (0 if extra is None else extra(*args)))
        return result

    def _hold(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        if not self.holders[key]:
            self.bytes += size
        self.holders[key] += 1
        weakref.finalize(x, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.holders[key] -= 1
        if not self.holders[key]:
            self.bytes -= size


def _experts_workspace(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, *_: Any) -> int:
    """Return the bytes of the sums in float32 and of one expert's own rows through its layers, for an even load."""
    rows = chosen.numel() // first.shape[0] + 1
    inside = x.shape[1] + first.shape[1] + 3 * second.shape[2] + 3 * second.shape[1]
    return 4 * x.shape[0] * second.shape[1] + rows * inside * x.element_size()


# What operators need inside beside their results, by name.
WORKSPACE = {"experts": _experts_workspace}
KEPT_BYTES = 16 << 20  # measured by benchmarks/long_prompts.py: 8 to 24 MiB


@dataclass(frozen=True)
class PrefillMemory:
    """What reading a prompt takes, in bytes.

    Attributes:
        weights: of the model.
        state: recurrent states and caches after the prompt.
        working: what else lives at once, at most: activations of one part of the prompt.
        kept: what kernels and library keep for themselves: scratch memory, compiled products.
    """

    weights: int
    state: int
    working: int
    kept: int = KEPT_BYTES

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.state + self.working + self.kept


@torch.no_grad()
def prefill_memory(config: ModelConfig, tokens: int, part: int, dtype: torch.dtype = torch.bfloat16) -> PrefillMemory:
    """Return the memory of a prompt of `tokens`, read `part` at a time; its caches are allocated in full at the start.

    Only the last part is run: it sees the longest past.
    """
    model = HybridLM(config, device="meta").to(dtype).eval()
    last = tokens - (tokens - 1) // part * part
    part = last if tokens <= part else part
    state = model.empty_state(1, tokens)
    seen = max(0, tokens - part)
    layers = [layer and layer.aged(seen, tokens) for layer in state.layers]
    stream = Stream(Segments.equal(1, part), torch.zeros(part, dtype=torch.int64, device="meta"))
    held = sum(layer.nbytes for layer in layers if layer is not None)
    known = [x for layer in layers if layer is not None for x in layer.tensors()]
    with Alive([*known, *model.parameters()]) as alive:
        hidden, _, _ = model.body(model.embed(torch.zeros(part, dtype=torch.int64, device="meta")), stream, layers)
        model.logits(hidden[-1:])
    weights = model.weights_bytes
    return PrefillMemory(weights, held, alive.peak)
