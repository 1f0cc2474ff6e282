"""Where the chunks of ragged sequences lie, as tables on the device that kernels read.

The borders of sequences are known on the host (`Segments`), so tables are made there, once for each batch and device,
and copied without waiting. Each sequence is cut into chunks of its own: no chunk holds two sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

PERIOD = 8  # chunks between two states that a forward keeps


@dataclass(frozen=True)
class Chunks:
    """The chunks of N sequences of `total` tokens. All tables are int32 on the device.

    Attributes:
        count: of all chunks; at most total / size + N.
        offsets: [N + 1]: the borders.
        stretches: how many stretches there are; a stretch is `period` chunks of one sequence, the last one fewer.
        chunks: [count, 2]: the first token, and one past the last.
        owners: [count]: the sequence of each chunk.
        sequences: [N, 4]: the first chunk, one past the last, the first kept state, and 0.
        stretch: [stretches, 4]: the first chunk, one past the last, the kept state it starts from (-1 for the
            sequence's first), and the sequence.
    """

    count: int
    stretches: int
    offsets: Tensor
    chunks: Tensor
    owners: Tensor
    sequences: Tensor
    stretch: Tensor


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def chunks(offsets: Tensor, device: torch.device, size: int, period: int) -> Chunks:
    """Return the tables of sequences whose borders are `offsets` [N + 1], int32 on the CPU; made once for each.

    Args:
        offsets: where sequences start, and total; the table is remembered as long as this tensor lives.
        device: where the kernels run.
        size: tokens of a chunk.
        period: chunks of a stretch; a state is kept at the border of two stretches of a sequence.
    """
    known = _known.setdefault(offsets, {})
    key = (device, size, period)
    if key not in known:
        known[key] = _chunks(offsets, device, size, period)
    found: Chunks = known[key]
    return found


def _chunks(offsets: Tensor, device: torch.device, size: int, period: int) -> Chunks:
    borders = offsets.cpu().long()
    start, length = borders[:-1], borders.diff()
    count = (length + size - 1) // size
    owners, place = _enumerated(count)
    first_token = start[owners] + place * size
    chunk = torch.stack((first_token, torch.minimum(first_token + size, borders[owners + 1])), dim=1)

    last = count.cumsum(0)
    first = last - count
    kept = ((count - 1) // period).clamp(min=0)
    first_kept = kept.cumsum(0) - kept
    sequence = torch.stack((first, last, first_kept, torch.zeros_like(first)), dim=1)

    owner, place = _enumerated((count + period - 1) // period)
    begin = first[owner] + place * period
    state = torch.where(place == 0, -1, first_kept[owner] + place - 1)
    stretch = torch.stack((begin, torch.minimum(begin + period, last[owner]), state, owner), dim=1)
    tables = [on_device(x.to(torch.int32), device) for x in (borders, chunk, owners, sequence, stretch)]
    return Chunks(chunk.shape[0], stretch.shape[0], *tables)


def _enumerated(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of sum(counts) items its owner, and its place among the owner's."""
    owner = torch.repeat_interleave(torch.arange(counts.shape[0]), counts)
    return owner, torch.arange(owner.shape[0]) - (counts.cumsum(0) - counts)[owner]


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a CPU tensor on a device, made without waiting for the device."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.contiguous().to(device, non_blocking=True)
