"""Nasty inputs for `linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.linear import dispatch


def linear_case(lengths: list[int], label: str, residual: bool, seed: int = 0) -> Case:
    """Make a case: few rows and many, an odd width, an odd number of outputs."""
    draw = torch.Generator().manual_seed(seed)
    rows, D, outputs = sum(lengths), 83, 71
    tensors = {"x": torch.randn(rows, D, generator=draw, dtype=torch.float64)}
    tensors["weight"] = torch.randn(outputs, D, generator=draw, dtype=torch.float64) / D**0.5
    if residual:
        tensors["residual"] = torch.randn(rows, outputs, generator=draw, dtype=torch.float64)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [dispatch.linear(**x, backend=backend)]

    return Case("linear", label, tensors, call, truth="plain", differentiable=False)


OPERATOR = Operator("linear", dispatch, linear_case)
