"""Nasty inputs for `rms_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.cases import Case, Operator
from interlace.ops.rms_norm import dispatch


def rms_norm_case(
    lengths: list[int], label: str, dressed: bool, seed: int = 0, shape: tuple[int, int] = (3, 37)
) -> Case:
    """Make a case: an odd width, rows of very different size, one of zeros; dressed: all operands, in all forms."""
    draw = torch.Generator().manual_seed(seed)
    T, (heads, D) = sum(lengths), shape
    tensors = {"x": torch.randn(T, heads, D, generator=draw, dtype=torch.float64)}
    tensors["x"] *= torch.randn(T, heads, 1, generator=draw, dtype=torch.float64).mul(3).exp()
    tensors["x"][0, 0] = 0
    tensors["weight"] = torch.randn(D, generator=draw, dtype=torch.float64)
    for name in ("before", "gate", "after") if dressed else ():
        tensors[name] = torch.randn(T, heads, D, generator=draw, dtype=torch.float64)
    if dressed:
        tensors["weights"] = torch.randn(heads, D, generator=draw, dtype=torch.float64)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        if not dressed:
            return [dispatch.rms_norm(x["x"], x["weight"], 1e-5, backend=backend)[0]]
        rest = {n: x[n] for n in ("before", "gate", "after")}
        outputs: list[Tensor] = []
        for weight, first in (("weight", False), ("weights", True)):
            for activation, offset in (("silu", 0.0), ("sigmoid", 1.0)):
                outputs += dispatch.rms_norm(
                    x["x"],
                    x[weight],
                    1e-5,
                    **rest,  # type: ignore[arg-type]
                    offset=offset,
                    activation=activation,
                    gate_first=first,
                    backend=backend,
                )
        return outputs

    return Case("rms_norm", label, tensors, call, truth="plain")


def probe(width: int) -> Case:
    """Make the case that a GPU's kernels are checked with."""
    return rms_norm_case([70, 5], "probe", True, shape=(3, width))


def probes() -> list[Case]:
    """Make cases of the sizes that models have."""
    return [probe(192), probe(3840)]


OPERATOR = Operator("rms_norm", dispatch, rms_norm_case, probes=probes)
