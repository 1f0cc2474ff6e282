"""Nasty inputs for `rope`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.rope import dispatch


def rope_case(lengths: list[int], label: str, partly: bool, seed: int = 0) -> Case:
    """Make a case: halves that fill no vector, angles of all sizes; partly: some elements of each head stay."""
    draw = torch.Generator().manual_seed(seed)
    heads, dim, turning = 3, 38, 14 if partly else 38
    x = torch.randn(sum(lengths), heads, dim, generator=draw, dtype=torch.float64)
    angles = torch.randn(sum(lengths), turning // 2, generator=draw, dtype=torch.float64) * 100
    cos, sin = (torch.cat((f(angles),) * 2, dim=-1).float() for f in (torch.cos, torch.sin))

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        device = x["x"].device
        return [dispatch.rope(x["x"], cos.to(device), sin.to(device), backend=backend)]

    return Case("rope", label, {"x": x}, call, truth="plain")


OPERATOR = Operator("rope", dispatch, rope_case)
