"""One decoding step on a CPU as a list of calls: native kernels and torch's operations, at fixed addresses.

The step is run once as it is. What it computes is captured: each native kernel with its arguments, and each operation
of torch, which is repeated with its result written where it was the first time. Nothing of a model is written twice,
and a replay runs no module, chooses no backend and checks no shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.ops.core import kernels
from interlace.ops.core.threads import Free

# Results of these depend on values: they look at one on the host, or their shape does.
_LOOKS = {
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "masked_select",
    "unique_dim",
    "_unique2",
    "bincount",
}
# These compute nothing: memory that is not filled, and views whose schema does not say so.
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_NOTHING = {*_EMPTY, "lift_fresh", "_unsafe_view", "_reshape_alias", "detach"}

FREE = Free()
_WHOLE = {"lstm"}  # looks at how many sequences there are, which a step does not change
_OF_RESULTS = {"dtype", "layout", "device", "pin_memory"}  # arguments that given results replace


class Shared:
    """Memory that captured steps share, one of which runs at a time: what a step's kernels write and read lies in it.

    Attributes:
        nbytes: of all blocks. A block is twice as large as the one before it, and is kept as steps point into it.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._block, self._used, self.nbytes = torch.empty(0, dtype=torch.uint8), 0, 0

    def begin(self) -> None:
        """Begin a step."""
        self._used = 0

    def like(self, x: Tensor) -> Tensor:
        """Return memory for a contiguous tensor that holds nothing yet."""
        size = -(-x.nbytes // 64) * 64
        if self._used + size > self._block.numel():
            self._block = torch.empty(max(1 << 20, size, 2 * self._block.numel()), dtype=torch.uint8)
            self._used, self.nbytes = 0, self.nbytes + self._block.nbytes
        taken = self._block[self._used : self._used + x.nbytes]
        self._used += size
        return taken.view(x.dtype).view(x.shape)


class CpuGraph:
    """The calls of one step on a CPU.

    Attributes:
        reason: why they cannot be repeated; "" if they can.
    """

    masks = False  # see `graph.Graph`

    def __init__(self, shared: Shared | None = None) -> None:
        """Begin with no calls; shared: memory for what the step computes, or None for its own."""
        self.recording, self.reason, self._tried = kernels.Recording(), "no step was run yet", False
        self._shared = shared or Shared()

    def warm(self, run: Callable[[], None]) -> None:
        """Run a function, and capture what it computes; one that cannot be repeated is captured once only."""
        if self._tried:
            run()
            return
        self._tried = True
        self._shared.begin()
        with kernels.recording() as self.recording, _Operations(self.recording, self._shared) as operations:
            run()
        looks = ", ".join(sorted(operations.looks))
        self.reason = f"the model looks at values on the way ({looks})" if looks else ""

    def capture(self, run: Callable[[], None]) -> None:
        """Raise RuntimeError if what ran cannot be repeated; it was captured when it ran."""
        if self.reason:
            raise RuntimeError(self.reason)

    def replay(self) -> None:
        """Repeat the calls, on the processors that others leave free."""
        with kernels.at_most(FREE()):
            self.recording.replay()


class _Operations(TorchDispatchMode):
    """Adds every torch operation that computes to a recording."""

    def __init__(self, recording: kernels.Recording, shared: Shared) -> None:
        super().__init__()
        self.recording, self.shared, self.looks = recording, shared, set[str]()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch's compiler unimported."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in _WHOLE:
            with self:  # an operation made of others is captured as those
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        with kernels.unrecorded():  # kernels inside an operator of ours belong to it
            result = func(*args, **kwargs)
        if name in _EMPTY and result.numel() and result.is_contiguous() and result.device.type == "cpu":
            return self.shared.like(result)
        if name in _LOOKS:
            self.looks.add(name)
        elif name not in _NOTHING and not func.is_view:
            self.recording.calls.append((_repeated(func, args, kwargs, result), ()))
        return result


def _repeated(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Callable[[], None]:
    """Return what repeats an operation into the memory of its first result."""
    if func._schema.is_mutable:
        return lambda: func(*args, **kwargs)
    results = result if isinstance(result, tuple | list) else (result,)
    if (out := _with_out(func, len(results))) is not None:
        known = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
        taken = [a for a in out._schema.arguments if a.name in known and not a.is_out]
        places = [known[a.name] for a in taken if not a.kwarg_only]
        named = {a.name: known[a.name] for a in taken if a.kwarg_only}
        named |= dict(zip((a.name for a in out._schema.arguments if a.is_out), results, strict=True))
        return lambda: out(*places, **named)

    def copied() -> None:
        again = func(*args, **kwargs)
        for ours, new in zip(results, again if isinstance(again, tuple | list) else (again,), strict=True):
            if isinstance(ours, Tensor):
                ours.copy_(new)

    return copied


def _with_out(func: Any, results: int) -> Any:
    """Return the overload that writes into given tensors; None if the operation has none."""
    if func.namespace != "aten":
        return None
    plain = [(a.name, str(a.type)) for a in func._schema.arguments]
    without = [pair for pair in plain if pair[0] not in _OF_RESULTS]
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        outs = [a for a in other._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in other._schema.arguments if not a.is_out]
        if len(outs) == results and rest in (plain, without):
            return other
    return None
