"""Where the chunks of ragged sequences lie, as tables on the device that kernels read.

The borders of sequences are known on the host (`Segments`), so tables are made there, once for each batch and device,
and copied without waiting. Each sequence is cut into chunks of its own: no chunk holds two sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

PERIOD = 8  # chunks between two states that a forward keeps
WHOLE = 1 << 30  # chunks of a stretch that is all of a sequence


@dataclass(frozen=True)
class Chunks:
    """The chunks of N sequences of `total` tokens. All tables are int32 on the device.

    Attributes:
        count: of all chunks; at most total / size + N.
        offsets: [N + 1]: the borders.
        stretches: how many stretches there are; a stretch is `period` chunks of one sequence, the last one fewer.
        chunks: [count, 2]: the first token, and one past the last.
        owners: [count]: the sequence of each chunk.
        sequences: [N, 4]: the first chunk, one past the last, the first kept state, and how many are kept.
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


@dataclass(frozen=True)
class Ranks:
    """The chunks of N sequences, in the order of a scan that takes one chunk of every sequence at a time.

    The longest sequence comes first, so those that still have a chunk are the first ones. Indices are int64 on the
    device. In a sequence's last chunk, tokens may be missing.

    Attributes:
        steps: on the host, for each step of the scan (its first chunk, one past its last).
        token: [chunks, size]: which token lies there, or any.
        there: bool [chunks, size]: whether one does.
        place: [total]: where each token lies.
        order: [N]: which sequence has a rank.
        rank: [N]: which rank a sequence has.
    """

    steps: list[tuple[int, int]]
    token: Tensor
    there: Tensor
    place: Tensor
    order: Tensor
    rank: Tensor


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def chunks(offsets: Tensor, device: torch.device, size: int, period: int) -> Chunks:
    """Return the tables of sequences whose borders are `offsets` [N + 1], int32 on the CPU; made once for each.

    Args:
        offsets: where sequences start, and total; the table is remembered as long as this tensor lives.
        device: where the kernels run.
        size: tokens of a chunk.
        period: chunks of a stretch; a state is kept at the border of two stretches of a sequence.
    """
    found: Chunks = made_once(_chunks, offsets, device, size, period)
    return found


def borders(offsets: Tensor, device: torch.device) -> Tensor:
    """Return the borders of sequences, int32 [N + 1], on a device; copied once, as `chunks`."""
    found: Tensor = made_once(_borders, offsets, device)
    return found


def ranks(offsets: Tensor, device: torch.device, size: int) -> Ranks:
    """Return the order in which a scan takes the chunks of all sequences at a time; made once, as `chunks`."""
    found: Ranks = made_once(_ranks, offsets, device, size)
    return found


def positions(offsets: Tensor, device: torch.device) -> Tensor:
    """Return int64 [total], each token's place in its own sequence; made once, as `chunks`."""
    found: Tensor = made_once(_positions, offsets, device)
    return found


def made_once(make: Callable[..., Any], offsets: Tensor, *key: Any) -> Any:
    """Return make(offsets, *key), which is remembered as long as `offsets` lives."""
    known = _known.setdefault(offsets, {})
    if (make, *key) not in known:
        known[make, *key] = make(offsets, *key)
    return known[make, *key]


def _borders(offsets: Tensor, device: torch.device) -> Tensor:
    return on_device(offsets.to(torch.int32), device)


def _positions(offsets: Tensor, device: torch.device) -> Tensor:
    return on_device(_enumerated(offsets.cpu().long().diff())[1], device)


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
    sequence = torch.stack((first, last, first_kept, kept), dim=1)

    owner, place = _enumerated((count + period - 1) // period)
    begin = first[owner] + place * period
    state = torch.where(place == 0, -1, first_kept[owner] + place - 1)
    stretch = torch.stack((begin, torch.minimum(begin + period, last[owner]), state, owner), dim=1)
    tables = [on_device(x.to(torch.int32), device) for x in (borders, chunk, owners, sequence, stretch)]
    return Chunks(chunk.shape[0], stretch.shape[0], *tables)


def _ranks(offsets: Tensor, device: torch.device, size: int) -> Ranks:
    borders = offsets.cpu().long()
    order = torch.sort(borders.diff(), descending=True, stable=True).indices
    start, length = borders[:-1][order], borders.diff()[order]
    count = (length + size - 1) // size
    alive = (count[None, :] > torch.arange(int(count[0]))[:, None]).sum(1)  # sequences that have a chunk at each step
    step, rank = torch.repeat_interleave(torch.arange(alive.shape[0]), alive), _enumerated(alive)[1]
    within = step[:, None] * size + torch.arange(size)
    there = within < length[rank][:, None]
    token = start[rank][:, None] + torch.minimum(within, length[rank][:, None] - 1)
    place = torch.empty(int(borders[-1]), dtype=torch.int64)
    place[token[there]] = torch.arange(token.numel()).view_as(token)[there]
    ends = alive.cumsum(0).tolist()
    tensors = [on_device(x, device) for x in (token, there, place, order, torch.argsort(order))]
    return Ranks(list(zip([0, *ends[:-1]], ends, strict=True)), *tensors)


def _enumerated(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of sum(counts) items its owner, and its place among the owner's."""
    owner = torch.repeat_interleave(torch.arange(counts.shape[0]), counts)
    return owner, torch.arange(owner.shape[0]) - (counts.cumsum(0) - counts)[owner]


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """Return x on a device; a copy from the CPU does not wait for what the device has to do before."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
