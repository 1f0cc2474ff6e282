"""Segments say where sequences start; every form of the same lengths is the same."""

from __future__ import annotations

import pytest
import torch

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments

LENGTHS = [[1], [5], [3, 1, 4], [2, 2, 2], [1, 1, 1, 1]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_lengths_offsets_and_spans_agree(lengths):
    segments = Segments.from_lengths(lengths)
    again = Segments.from_offsets(segments.offsets)
    assert segments.offsets.dtype == torch.int32
    for found in (segments, again):
        assert found.lengths == lengths
        assert (found.count, found.total) == (len(lengths), sum(lengths))
        assert [b - a for a, b in found.spans()] == lengths
        assert found.last().tolist() == [b - 1 for _, b in found.spans()]
        assert found.time == (lengths[0] if len(set(lengths)) == 1 else None)
    if len(set(lengths)) == 1:
        assert torch.equal(Segments.equal(len(lengths), lengths[0]).offsets, segments.offsets)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_positions_count_from_what_was_seen_before(lengths):
    segments, starts = Segments.from_lengths(lengths), torch.arange(len(lengths)) * 10
    want = [s + t for s, n in zip(starts.tolist(), lengths, strict=True) for t in range(n)]
    assert segments.positions(starts).tolist() == want
    assert segments.positions().tolist() == [t for n in lengths for t in range(n)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Segments.from_lengths([0]),
        lambda: Segments.from_lengths([]),
        lambda: Segments.from_lengths([2, -1]),
        lambda: Segments.from_lengths([1 << 31]),
        lambda: Segments.from_offsets(torch.tensor([1, 2])),
        lambda: Segments.from_offsets(torch.tensor([0, 2, 2])),
        lambda: Segments.from_offsets(torch.tensor([[0, 2]])),
        lambda: Segments.from_offsets([0, 2]),
        lambda: Segments.equal(0, 3),
        lambda: Segments.equal(2, 0),
        lambda: Segments.equal(1.5, 2),
        lambda: Segments.equal(1 << 20, 1 << 20),
    ],
)
def test_what_is_no_partition_is_refused(make):
    with pytest.raises(ShapeError, match="segments"):
        make()
