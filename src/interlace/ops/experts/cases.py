"""Nasty inputs for `experts`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.experts import dispatch


def experts_case(
    lengths: list[int], label: str, gated: bool, seed: int = 0, shape: tuple[int, int, int] = (11, 7, 9)
) -> Case:
    """Make a case: one expert that nobody chose, one that all did; gated: SwiGLU, else ReLU squared."""
    draw = torch.Generator().manual_seed(seed)
    rows, E, k, (D, inner, outputs) = sum(lengths), 5, 2, shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    tensors = {"x": normal(rows, D), "weights": normal(rows, k), "second": normal(E, outputs, inner)}
    tensors["first"] = normal(E, 2 * inner if gated else inner, D)
    chosen = torch.stack((torch.ones(rows, dtype=torch.int64), 2 + torch.randint(3, (rows,), generator=draw)), dim=1)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        where = chosen.to(x["x"].device)
        return [dispatch.experts(**x, chosen=where, activation="swiglu" if gated else "relu2", backend=backend)]

    return Case("experts", label, tensors, call, shared=("first", "second"), truth="plain")


def probe(width: int, inner: int, outputs: int, pairs: int) -> Case:
    """Make the case that a GPU's kernels are checked with; pairs: at least so many to an expert."""
    rows = 5 * (pairs + 1) // 2 + 1  # two choices of five experts
    return experts_case([rows, 5], "probe", True, shape=(width, inner, outputs))


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(512, 256, 512, 0), probe(512, 256, 512, 96)]


OPERATOR = Operator("experts", dispatch, experts_case, probes=probes)
