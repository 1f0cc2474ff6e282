"""Nasty inputs for `long_convolution`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core.cases import Case, Operator
from interlace.ops.long_convolution import dispatch


def long_convolution_case(lengths: list[int], label: str, slow: bool, seed: int = 0) -> Case:
    """Make a case: more taps than tokens in any sequence; slow: taps that hardly fall, else taps that fall soon."""
    draw = torch.Generator().manual_seed(seed)
    T, D, L = sum(lengths), 7, max(lengths) + 5
    fall = torch.exp(-torch.arange(L, dtype=torch.float64) / (1000 if slow else 3))
    tensors = {
        "x": torch.randn(T, D, generator=draw, dtype=torch.float64),
        "taps": torch.randn(L, D, generator=draw, dtype=torch.float64) * fall[:, None],
    }
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [dispatch.long_convolution(**x, segments=segments, backend=backend)[0]]  # type: ignore[arg-type]

    return Case("long_convolution", label, tensors, call, shared=("taps",))


OPERATOR = Operator("long_convolution", dispatch, long_convolution_case, mixes=True)
