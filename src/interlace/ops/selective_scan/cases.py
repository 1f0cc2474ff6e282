"""Nasty inputs for `selective_scan`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core.cases import Case, Operator
from interlace.ops.selective_scan import dispatch


def selective_scan_case(
    lengths: list[int], label: str, with_state: bool, seed: int = 0, shape: tuple[int, int] = (9, 5)
) -> Case:
    """Make a case: steps at 0, at 3 (half the state is gone at once) and between; decays at 0 and at -30 to a step."""
    draw = torch.Generator().manual_seed(seed)
    T, (D, K) = sum(lengths), shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tensors = {"x": normal(T, D), "step": (normal(T, D) * 2).clamp(0, 3), "B": normal(T, K), "C": normal(T, K)}
    tensors["A"] = -normal(D, K).abs()
    tensors["A"][0], tensors["A"][1] = 0, -30
    if with_state:
        tensors["state"] = normal(len(lengths), D, K)
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return list(dispatch.selective_scan(**x, segments=segments, backend=backend))

    return Case("selective_scan", label, tensors, call, shared=("A", "state"))


def probe(size: int) -> Case:
    """Make the case that a GPU's kernels are checked with."""
    return selective_scan_case([1, 70, 400], "probe", True, shape=(48, size))


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(16)]


OPERATOR = Operator("selective_scan", dispatch, selective_scan_case, mixes=True, probes=probes)
