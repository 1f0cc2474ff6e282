"""Nasty inputs for `cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.cross_entropy import dispatch


def cross_entropy_case(lengths: list[int], label: str, large: bool, seed: int = 0) -> Case:
    """Make a case: an odd vocabulary, an ignored target; large: logits whose exponentials overflow."""
    draw = torch.Generator().manual_seed(seed)
    rows, D = sum(lengths), 61
    logits = torch.randn(rows, D, generator=draw, dtype=torch.float64) * (100 if large else 1)
    targets = torch.randint(D, (rows,), generator=draw)
    targets[rows // 2] = -100 if rows > 1 else targets[0]

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        d_logits = x["logits"].detach().clone()
        losses = dispatch.cross_entropy_(d_logits, targets.to(d_logits.device), factor=0.5, backend=backend)
        return [losses, d_logits]

    return Case("cross_entropy_", label, {"logits": logits}, call, truth="plain", differentiable=False)


OPERATOR = Operator("cross_entropy_", dispatch, cross_entropy_case)
