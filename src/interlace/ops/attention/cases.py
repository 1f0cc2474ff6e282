"""Nasty inputs for `attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.attention import dispatch
from interlace.ops.core.cases import Case, Operator


def attention_case(
    lengths: list[int],
    label: str,
    window: int | None,
    seed: int = 0,
    shape: tuple[int, int, int, int] = (4, 2, 12, 20),
) -> Case:
    """Make a case: grouped heads, K != V, with and without a window."""
    draw = torch.Generator().manual_seed(seed)
    T, (H, J, K, V) = sum(lengths), shape
    shapes = {"query": (T, H, K), "key": (T, J, K), "value": (T, J, V)}
    tensors = {n: torch.randn(*s, generator=draw, dtype=torch.float64) for n, s in shapes.items()}
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [dispatch.attention(**x, segments=segments, window=window, backend=backend)[0]]  # type: ignore[arg-type]

    return Case("attention", label, tensors, call, options={} if window is None else {"window": window})


OPERATOR = Operator(
    "attention", dispatch, lambda n, label, windowed: attention_case(n, label, 5 if windowed else None), mixes=True
)
