"""The public operator `linear`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.ops import native
from interlace.ops.backends import Backend, choose
from interlace.ops.native import DTYPES, address

FEW = 4  # rows; beyond, the library's blocked product is faster


def _plain(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    out = torch.nn.functional.linear(x, weight)
    return out if residual is None else residual + out


def _run_native(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    out = x.new_empty(x.shape[0], weight.shape[0])
    sizes = (DTYPES[x.dtype], x.shape[0], *weight.shape, torch.get_num_threads())
    native.kernels().linear(address(x), address(weight), address(residual), *sizes, address(out))
    return out


def _refuses(x: Tensor, weight: Tensor, residual: Tensor | None) -> str | None:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return "it has no gradients"
    if x.dtype != weight.dtype or (residual is not None and residual.dtype != x.dtype):
        return "the operands' dtypes differ"
    return native.refuses(x) if weight.is_contiguous() else "the weight is not contiguous"


BACKENDS = (
    Backend("native", _run_native if native.available() else None, _refuses, ("cpu",), native.missing),
    Backend("plain", _plain),
)


def linear(
    x: Float[Tensor, "rows D"],
    weight: Float[Tensor, "outputs D"],
    residual: Float[Tensor, "rows outputs"] | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "rows outputs"]:
    """x weight^T + residual; few rows without gradients by the native kernel, all else by torch's product.

    Args:
        x: [rows, D].
        weight: [outputs, D].
        residual: [rows, outputs] or None.
        backend: "auto", "native" (float32 and bfloat16 on a CPU, no gradients) or "plain".
    """
    if backend == "auto" and (x.shape[0] > FEW or not native.available() or _refuses(x, weight, residual)):
        return _plain(x, weight, residual)
    return choose("linear", BACKENDS, backend, x, weight, residual)(x, weight, residual)
