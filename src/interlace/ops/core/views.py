"""View the segments of a flat axis: all at once if they are equally long, else one by one."""

from __future__ import annotations

from torch import Tensor


def views(x: Tensor, offsets: Tensor, time: int) -> list[tuple[slice, Tensor]]:
    """(rows of the state, [rows, T, D] view of the flat axis) for all segments at once, or one by one."""
    N = offsets.shape[0] - 1
    if time:
        return [(slice(0, N), x.unflatten(0, (N, time)))]
    bounds = offsets.tolist()
    return [(slice(n, n + 1), x[bounds[n] : bounds[n + 1]].unsqueeze(0)) for n in range(N)]
