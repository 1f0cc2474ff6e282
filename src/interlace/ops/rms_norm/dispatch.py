"""The public operator `rms_norm`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops import native
from interlace.ops.backends import Backend, choose
from interlace.ops.rms_norm import native as compiled
from interlace.ops.rms_norm.plain import plain

BACKENDS = (
    Backend("native", compiled.run if native.available() else None, native.refuses, native.DEVICES, native.missing),
    Backend("plain", plain),
)


def rms_norm(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, " D"],
    eps: float,
    *,
    before: Float[Tensor, "*rows D"] | None = None,
    gate: Float[Tensor, "*rows D"] | None = None,
    after: Float[Tensor, "*rows D"] | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows D"]]:
    """s = x + before;  out = weight s / sqrt(mean(s^2) + eps) SiLU(gate) + after.

    Args:
        x: [rows, D] or [total, heads, D]; a slice of wider rows is read where it lies.
        weight: [D].
        eps: keeps a row of zeros finite.
        before: what a residual branch adds, as x.
        gate, after: as x.
        dtype: of out; x's if None.
        backend: "auto", "native" (float32 and bfloat16 on a CPU) or "plain".

    Returns:
        out, and s in x's dtype (x itself without `before`).

    Raises:
        ShapeError: an operand's shape differs from x's.

    Source: arXiv 1910.07467; README.md beside this file has the gradients.
    """
    for name, other in (("before", before), ("gate", gate), ("after", after)):
        if other is not None and other.shape != x.shape:
            raise ShapeError(f"rms_norm: {name} has shape {list(other.shape)}, but it must be x's {list(x.shape)}")
    if weight.shape != x.shape[-1:]:
        raise ShapeError(f"rms_norm: weight has shape {list(weight.shape)}, but it must be [{x.shape[-1]}]")
    if x.shape[-1] < 1:
        raise ShapeError(f"rms_norm: x has shape {list(x.shape)}, but its rows must hold something")
    dtype = dtype or x.dtype
    run = choose("rms_norm", BACKENDS, backend, x, weight, before, gate, after, x.new_empty(0, dtype=dtype))
    return run(x, weight, eps, before, gate, after, dtype)
