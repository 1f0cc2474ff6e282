"""Where each sequence starts on the flat axis of tokens."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import ShapeError


@dataclass(frozen=True)
class Segments:
    """The lengths of N sequences that lie end to end on one flat axis of tokens.

    Nothing is padded, so nothing can leak: operators restart their state at every border.
    The description lives on the CPU; kernels on a device copy what they need.

    Attributes:
        offsets: int32 [N + 1], rising from 0 to `total` (what others call `cu_seqlens`).
        total: the number of tokens in all segments together.
        time: the common length where all segments are equally long and it is known, else None. A fast path only.
        bound: a power of two that no length passes, where it is known. Few compiled graphs differ in it.
        across: where these tokens lie on an axis that several workers hold (`interlace.ops.core.across.Across`); None
            where every sequence is here whole.
    """

    offsets: Tensor
    total: int
    time: int | None = field(default=None, compare=False)
    bound: int | None = field(default=None, compare=False)
    across: Any = field(default=None, compare=False)

    @staticmethod
    def from_lengths(lengths: Sequence[int]) -> Segments:
        """Segments of the given lengths, each at least 1.

        Raises:
            ShapeError: no lengths, or one below 1.
        """
        try:
            lengths = [operator.index(n) for n in lengths]
        except TypeError:
            raise ShapeError(f"segments: every length must be an integer, got {list(lengths)[:8]}") from None
        if not lengths or min(lengths) < 1:
            raise ShapeError(f"segments: every length must be at least 1, got {lengths[:8]}; drop empty sequences")
        if sum(lengths) >= 1 << 31:
            raise ShapeError(f"segments: {sum(lengths):,} tokens are more than int32 offsets can count; use fewer")
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        offsets[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0).to(torch.int32)
        time = lengths[0] if len(set(lengths)) == 1 else None
        return Segments(offsets, sum(lengths), time, 1 << (max(lengths) - 1).bit_length())

    @staticmethod
    def from_offsets(offsets: Tensor) -> Segments:
        """Segments from cumulative offsets [N + 1], as `cu_seqlens` has them.

        Raises:
            ShapeError: offsets are not one-dimensional, do not start at 0, or do not rise.
        """
        if not isinstance(offsets, Tensor):
            raise ShapeError(f"segments: offsets must be a tensor, got {offsets!r:.80}")
        values = offsets.tolist() if offsets.ndim == 1 else []
        if len(values) < 2 or values[0] != 0 or any(b <= a for a, b in pairwise(values)):
            raise ShapeError(f"segments: offsets must be one-dimensional and rise from 0, got {values[:8]}")
        return Segments.from_lengths([b - a for a, b in pairwise(values)])

    @staticmethod
    def equal(count: int, time: int) -> Segments:
        """`count` segments of `time` tokens each; traceable by torch.compile.

        Raises:
            ShapeError: one of them is no integer, or below 1, or they are too many.
        """
        if isinstance(count, float) or isinstance(time, float):
            raise ShapeError(f"segments: count and time must be integers, got {count} and {time}")
        if count < 1 or time < 1:
            raise ShapeError(f"segments: count and time must be at least 1, got {count} and {time}")
        if count * time >= 1 << 31:
            raise ShapeError(f"segments: {count * time:,} tokens are more than int32 offsets can count; use fewer")
        return Segments(torch.arange(0, count * time + 1, time, dtype=torch.int32), count * time, time)

    @property
    def count(self) -> int:
        """N, the number of segments."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> list[int]:
        """The lengths of the N segments."""
        if self.time is not None:
            return [self.time] * self.count
        return [b - a for a, b in pairwise(self.offsets.tolist())]

    @property
    def whole(self) -> Segments:
        """The sequences of the whole axis, of which these tokens may be a stretch."""
        found: Segments = self if self.across is None else self.across.whole
        return found

    def spans(self) -> list[tuple[int, int]]:
        """The N pairs (first token, one past the last token) on the flat axis."""
        return list(pairwise(self.offsets.tolist()))

    def last(self) -> Tensor:
        """int64 [N]: where each segment's last token lies on the flat axis."""
        return self.offsets[1:].long() - 1

    def positions(self, starts: Tensor | None = None) -> Tensor:
        """int64 [total]: each token's place in its own sequence, counted from `starts` [N] (0 if None)."""
        if self.time is not None:
            places = torch.arange(self.time).expand(self.count, self.time)
            if starts is not None:
                places = places + starts.cpu()[:, None]
            return places.reshape(-1)
        lengths = torch.diff(self.offsets).long()
        first = self.offsets[:-1].long() - (starts.cpu().long() if starts is not None else 0)
        if self.across is not None:
            first[0] -= self.across.before
        return torch.arange(self.total) - torch.repeat_interleave(first, lengths, output_size=self.total)
