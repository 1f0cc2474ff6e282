"""The public operator `rms_norm`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import gpu, kernels
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.rms_norm import native
from interlace.ops.rms_norm.operands import Form, Operands
from interlace.ops.rms_norm.plain import plain

LARGEST = 16384  # channels of a row that a program of the Triton kernels holds


def _refuses_gpu(operands: Operands) -> str | None:
    if operands.x.shape[-1] > LARGEST:
        return f"the kernels take rows of at most {LARGEST} channels, not {operands.x.shape[-1]}"
    return native.refuses(operands)


BACKENDS = (
    gpu.backend("rms_norm", _refuses_gpu, lambda operands: (operands.x.dtype, (operands.x.shape[-1],))),
    kernels.backend(lambda: native.run, native.refuses),
    Backend("plain", lambda: plain, slow_on=(ANY,)),
)


def rms_norm(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "*heads D"],
    eps: float,
    *,
    before: Float[Tensor, "*rows D"] | None = None,
    gate: Float[Tensor, "*rows D"] | None = None,
    after: Float[Tensor, "*rows D"] | None = None,
    offset: float = 0.0,
    activation: str = "silu",
    gate_first: bool = False,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "*rows D"], Float[Tensor, "*rows D"]]:
    """s = x + before;  out = (weight + offset) s / sqrt(mean(s^2) + eps) act(gate) + after.

    Args:
        x: [rows, D] or [total, heads, D]; a slice of wider rows is read where it lies.
        weight: [D], or [heads, D] for x [total, heads, D] whose heads have weights of their own.
        eps: keeps a row of zeros finite.
        before: what a residual branch adds, as x.
        gate, after: as x.
        offset: 1 where the weight is stored as its difference from 1.
        activation: of the gate, "silu" or "sigmoid".
        gate_first: normalise s act(gate), and leave the result as it is (Mamba-2), with `before` ungated in s.
        dtype: of out; x's if None.
        backend: "auto", "triton" (float32 and bfloat16 on a GPU), "native" (the same on a CPU) or "plain".

    Returns:
        out, and s in x's dtype (x itself without `before`).

    Raises:
        ShapeError: an operand's shape differs from x's, or the activation is unknown.

    Source: arXiv 1910.07467; README.md beside this file has the gradients.
    """
    for name, other in (("before", before), ("gate", gate), ("after", after)):
        if other is not None and other.shape != x.shape:
            raise ShapeError(f"rms_norm: {name} has shape {list(other.shape)}, but it must be x's {list(x.shape)}")
    if weight.shape != x.shape[-1:] and not (x.ndim == 3 and weight.shape == x.shape[1:]):
        raise ShapeError(
            f"rms_norm: weight has shape {list(weight.shape)}, but it must be [{x.shape[-1]}], or x's [heads, D]"
        )
    if activation not in ("silu", "sigmoid"):
        raise ShapeError(f"rms_norm: activation must be 'silu' or 'sigmoid', got {activation!r}")
    if x.shape[-1] < 1:
        raise ShapeError(f"rms_norm: x has shape {list(x.shape)}, but its rows must hold something")
    form = Form(float(eps), float(offset), activation, gate_first)
    operands = Operands(x, weight, before, gate, after, form, dtype or x.dtype)
    return choose("rms_norm", BACKENDS, backend, operands)(operands)
