"""Nasty inputs for `swiglu`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.swiglu import dispatch


def swiglu_case(lengths: list[int], label: str, large: bool, seed: int = 0, width: int = 37) -> Case:
    """Make a case: an odd width; large: values whose exponentials overflow."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), 2 * width, generator=draw, dtype=torch.float64) * (60 if large else 1)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [dispatch.swiglu(**x, backend=backend)]

    return Case("swiglu", label, {"gate_up": x}, call, truth="plain")


def probe(width: int) -> Case:
    """Make the case that a GPU's kernels are checked with."""
    return swiglu_case([70, 5], "probe", True, width=width)


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(4096)]


OPERATOR = Operator("swiglu", dispatch, swiglu_case, probes=probes)
