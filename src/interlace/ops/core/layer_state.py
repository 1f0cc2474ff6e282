"""The state of a layer for N sequences, and the methods that every such state has, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from interlace.base.state import UsedOnce

UNLIMITED = 1 << 62  # tokens


class LayerState(UsedOnce):
    """A dataclass whose fields are tensors [N, ...] and other states; one with another layout overrides the methods."""

    def parts(self) -> dict[str, Any]:
        """Return tensors [N, ...] and states, by name."""
        this: Any = self
        return {field.name: getattr(self, field.name) for field in fields(this)}

    def tensors(self) -> list[Tensor]:
        """Return all tensors that it holds."""
        return [x for p in self.parts().values() for x in ([p] if isinstance(p, Tensor) else p.tensors())]

    def _states(self) -> list[LayerState]:
        return [part for part in self.parts().values() if isinstance(part, LayerState)]

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return sum(x.nbytes for x in self.tensors())

    @property
    def room(self) -> int:
        """How many more tokens of each sequence fit without a larger buffer."""
        return min((state.room for state in self._states()), default=UNLIMITED)

    def advance(self) -> None:
        """Count one more token of each sequence, which a replayed step has written in place already."""
        for state in self._states():
            state.advance()

    def grow(self) -> None:
        """Allocate space for one more token of each sequence, where there is none."""
        for state in self._states():
            state.grow()

    def clear_unseen(self) -> None:
        """Fill what is allocated but holds no token with zeros."""
        for state in self._states():
            state.clear_unseen()

    def on_device(self, places: Tensor) -> Any:
        """Return a view on the same memory, to be given to one step that looks at no position on the host.

        Args:
            places: int64 [N] on the device, how many tokens each sequence has seen.

        Raises:
            BackendUnavailable: a step of this layer needs positions on the host.
        """
        parts = {n: p if isinstance(p, Tensor) else p.on_device(places) for n, p in self.parts().items()}
        return type(self)(**parts)

    def in_rows(self, slots: int) -> Any:
        """Return memory for the states of so many sequences of this layer, which decode together and come and go.

        Raises:
            BackendUnavailable: a step of this layer needs positions on the host.
        """
        made = {}
        for name, part in self.parts().items():
            if isinstance(part, Tensor):
                made[name] = part.new_zeros(slots, *part.shape[1:])
            else:
                made[name] = part.in_rows(slots)
        return type(self)(**made)

    def first(self, rows: int, places: Tensor) -> Any:
        """Return a view of the first rows, as `on_device`."""
        parts = {n: p[:rows] if isinstance(p, Tensor) else p.first(rows, places) for n, p in self.parts().items()}
        return type(self)(**parts)

    def place(self, slot: int, state: Any) -> None:
        """Put a state of one sequence into a slot; it is used up."""
        theirs = state.use().parts()
        for name, part in self.parts().items():
            if isinstance(part, Tensor):
                part[slot] = theirs[name][0]
            else:
                part.place(slot, theirs[name])

    def move(self, source: int, target: int) -> None:
        """Give the sequence of one slot another one."""
        for part in self.parts().values():
            if isinstance(part, Tensor):
                part[target] = part[source]
            else:
                part.move(source, target)

    def clear(self, slot: int) -> None:
        """Leave nothing of a sequence in its slot."""
        for part in self.parts().values():
            if isinstance(part, Tensor):
                part[slot] = 0
            else:
                part.clear(slot)

    def one(self, slot: int, seen: int, reserve: int = 0, growing: bool = True) -> Any:
        """Return a copy of one sequence, which has seen so many tokens, without what its caches hold none in.

        reserve: tokens that the copy's caches have space for.
        growing: copy the tokens of growing caches too; else the caller fills these with `fill`.
        """
        made = {}
        for name, part in self.parts().items():
            whole = isinstance(part, Tensor)
            made[name] = part[slot : slot + 1].clone() if whole else part.one(slot, seen, reserve, growing)
        return type(self)(**made)

    def growing(self) -> list[Any]:
        """Return the growing caches in it: the states of attention that sees all tokens."""
        return [cache for state in self._states() for cache in state.growing()]

    def take(self, after: Any) -> None:
        """Copy the state after a step into the memory of this one, where the step has not written it in place."""
        for ours, theirs in zip(self.tensors(), after.tensors(), strict=True):
            if ours.data_ptr() != theirs.data_ptr():
                ours.copy_(theirs)

    def aged(self, seen: int, reserve: int) -> LayerState:
        """A state of these sizes whose sequences have seen so many tokens, its caches allocated for `reserve`."""
        parts = {n: p if isinstance(p, Tensor) else p.aged(seen, reserve) for n, p in self.parts().items()}
        return type(self)(**parts)

    def select(self, rows: Sequence[int]) -> LayerState:
        """Return a copy that holds these sequences, in this order; raises StateUsed."""
        self.check_unused()
        made = {}
        for name, part in self.parts().items():
            if isinstance(part, Tensor):
                made[name] = part[torch.as_tensor(list(rows), device=part.device)]
            else:
                made[name] = part.select(rows)
        return type(self)(**made)

    def fork(self, row: int) -> LayerState:
        """Return a copy of one sequence."""
        return self.select([row])

    @classmethod
    def concat(cls, states: Sequence[Any]) -> LayerState:
        """Return the sequences of several states, in order; raises StateUsed."""
        for state in states:
            state.check_unused()
        made = {}
        for name, part in states[0].parts().items():
            some = [state.parts()[name] for state in states]
            made[name] = torch.cat(some) if isinstance(part, Tensor) else type(part).concat(some)
        return cls(**made)

    def write(self, rows: Sequence[int], other: Any) -> None:
        """Replace these rows, in place, by the sequences of another state; raises StateUsed."""
        self.check_unused()
        other.check_unused()
        theirs = other.parts()
        for name, part in self.parts().items():
            if isinstance(part, Tensor):
                part[torch.as_tensor(list(rows), device=part.device)] = theirs[name]
            else:
                part.write(rows, theirs[name])
