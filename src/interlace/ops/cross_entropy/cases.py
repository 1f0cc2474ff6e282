"""Nasty inputs for `cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.cross_entropy import dispatch


def cross_entropy_case(lengths: list[int], label: str, large: bool, seed: int = 0, D: int = 61) -> Case:
    """Make a case: an odd vocabulary, an ignored target; large: logits whose exponentials overflow."""
    draw = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    logits = torch.randn(rows, D, generator=draw, dtype=torch.float64) * (100 if large else 1)
    targets = torch.randint(D, (rows,), generator=draw)
    targets[rows // 2] = -100 if rows > 1 else targets[0]

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        d_logits = x["logits"].detach().clone()
        losses = dispatch.cross_entropy_(d_logits, targets.to(d_logits.device), factor=0.5, backend=backend)
        return [losses, d_logits]

    return Case("cross_entropy_", label, {"logits": logits}, call, truth="plain", differentiable=False)


def probe(vocabulary: int) -> Case:
    """Make the case that a GPU's kernels are checked with."""
    return cross_entropy_case([5], "probe", True, D=vocabulary)


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(32_000)]


OPERATOR = Operator("cross_entropy_", dispatch, cross_entropy_case, probes=probes)
