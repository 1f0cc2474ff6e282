"""Which part of a whole parameter lies on which worker: boxes of it, with their places in the worker's own tensor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from interlace.layers.parts import Cut


class Piece(NamedTuple):
    """A box of a parameter.

    Attributes:
        here: where it begins in the worker's own tensor.
        start: where it begins in the whole parameter.
        size: of each axis.
        copies: how many workers of the tensor group hold it.
    """

    here: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    copies: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the box in the worker's own tensor."""
        return tensor[tuple(slice(a, a + n) for a, n in zip(self.here, self.size, strict=True))]

    def within(self, whole: Tensor) -> Tensor:
        """Return the box in the whole parameter."""
        return whole[tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))]


def held_rows(size: int, place: int, workers: int) -> tuple[int, int]:
    """Return the rows [a, b) that one of the workers holds that a tensor's first axis is cut over, as torch.chunk."""
    each = -(-size // workers)
    return min(size, place * each), min(size, (place + 1) * each)


class Layout(NamedTuple):
    """How a parameter is cut: first over the tensor group, then by rows over the workers that shard it.

    Attributes:
        shape: of the whole.
        cut: over the tensor group; None where each of its workers holds all, and there are no parts.
        tensor: workers of the tensor group.
        shards: workers that its rows are cut over; 1 where each holds all rows.
    """

    shape: tuple[int, ...]
    cut: Cut | None
    tensor: int
    shards: int

    @property
    def parts(self) -> tuple[int, ...]:
        """The sizes of its parts along the axis that is cut; of one, if it has no parts."""
        return self.shape[:1] if self.cut is None else self.cut.sizes

    def pieces(self, shard: int, tensor: int) -> list[Piece]:
        """Return what the worker at these places holds."""
        shape = list(self.shape)
        spans = [(0, 0, self.shape[0], self.tensor)] if self.cut is None else self._spans(self.cut, tensor)
        axis = 0 if self.cut is None else self.cut.axis
        shape[axis] = sum(size for _, _, size, _ in spans)
        first, last = held_rows(shape[0], shard, self.shards)
        found = []
        for here, start, size, copies in spans:
            low, high = (max(here, first), min(here + size, last)) if axis == 0 else (first, last)
            if low >= high:
                continue
            at, begin, extent = [0] * len(shape), [0] * len(shape), list(shape)
            at[0], begin[0], extent[0] = low - first, low, high - low
            if axis == 0:
                begin[0] = start + low - here
            else:
                at[axis], begin[axis], extent[axis] = here, start, size
            found.append(Piece(tuple(at), tuple(begin), tuple(extent), copies))
        return found

    def _spans(self, cut: Cut, place: int) -> list[tuple[int, int, int, int]]:
        spans = cut.places(place, self.tensor)
        return [(*span, self.tensor // cut.of(part, self.tensor)) for part, span in enumerate(spans)]

    def local_shape(self, shard: int, tensor: int) -> tuple[int, ...]:
        """Return the shape of a worker's own tensor."""
        shape = list(self.shape)
        if self.cut is not None:
            shape[self.cut.axis] = sum(size for _, _, size in self.cut.places(tensor, self.tensor))
        first, last = held_rows(shape[0], shard, self.shards)
        return (last - first, *shape[1:])
