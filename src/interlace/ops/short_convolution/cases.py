"""Nasty inputs for `short_convolution`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core.cases import Case, Operator
from interlace.ops.short_convolution import dispatch


def short_convolution_case(
    lengths: list[int], label: str, with_state: bool, seed: int = 0, shape: tuple[int, int] = (13, 4)
) -> Case:
    """Make a case: an odd number of channels, four taps, segments shorter than the window."""
    draw = torch.Generator().manual_seed(seed)
    T, (D, W) = sum(lengths), shape
    tensors = {
        "x": torch.randn(T, D, generator=draw, dtype=torch.float64),
        "weight": torch.randn(D, W, generator=draw, dtype=torch.float64),
    }
    if with_state:
        tensors["state"] = torch.randn(len(lengths), W - 1, D, generator=draw, dtype=torch.float64)
        tensors["bias"] = torch.randn(D, generator=draw, dtype=torch.float64)
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        operator = dispatch.short_convolution
        return list(operator(**x, segments=segments, backend=backend))  # type: ignore[arg-type]

    return Case("short_convolution", label, tensors, call, shared=("weight", "bias", "state"))


def probe(taps: int) -> Case:
    """Make the case that a GPU's kernels are checked with."""
    return short_convolution_case([1, 2, 130], "probe", True, shape=(304, taps))


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(4)]


OPERATOR = Operator("short_convolution", dispatch, short_convolution_case, mixes=True, probes=probes)
