"""The public operator `linear`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels
from interlace.ops.core.backends import Backend, choose
from interlace.ops.core.kernels import DTYPES, address

FEW = 64  # rows; beyond, the library's blocked product is faster
FEW_HALF = 16  # of bfloat16, which processors with tiles multiply at several times the rate


def _plain(x: Tensor, weight: Tensor, residual: Tensor | None, scales: Tensor | None) -> Tensor:
    out = torch.nn.functional.linear(x, weight.to(x.dtype))
    if scales is not None:
        out = out * scales.to(x.dtype)
    return out if residual is None else residual + out


def _run_native(x: Tensor, weight: Tensor, residual: Tensor | None, scales: Tensor | None) -> Tensor:
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    out = x.new_empty(x.shape[0], weight.shape[0])
    sizes = (DTYPES[x.dtype], x.shape[0], *weight.shape, torch.get_num_threads())
    operands = (address(x), address(weight), address(residual), address(scales))
    kernels.module().linear(*operands, *sizes, address(out))
    return out


def _refuses(x: Tensor, weight: Tensor, residual: Tensor | None, scales: Tensor | None) -> str | None:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return "it has no gradients"
    expected = x.dtype if scales is None else torch.int8
    if weight.dtype != expected or (residual is not None and residual.dtype != x.dtype):
        return "the operands' dtypes differ"
    if scales is not None and (scales.dtype != torch.float32 or not scales.is_contiguous()):
        return "the scales are not contiguous float32"
    operands = [y for y in (weight, residual, scales) if y is not None]
    if any(y.device.type != "cpu" for y in operands):
        return "not all tensors lie on the CPU"
    return kernels.refuses(x) if weight.is_contiguous() else "the weight is not contiguous"


def _pays(x: Tensor, weight: Tensor, *_: Tensor | None) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return x.shape[0] <= FEW_HALF or weight.dtype != torch.bfloat16


BACKENDS = (
    kernels.backend(lambda: _run_native, _refuses, ("cpu",), rows=FEW, when=_pays),
    Backend("plain", lambda: _plain, slow_on=("cpu",)),
)


def linear(
    x: Float[Tensor, "rows D"],
    weight: Shaped[Tensor, "outputs D"],
    residual: Float[Tensor, "rows outputs"] | None = None,
    *,
    scales: Float[Tensor, " outputs"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "rows outputs"]:
    """x (scales weight)^T + residual; few rows without gradients by the native kernel, all else by torch's product.

    Args:
        x: [rows, D].
        weight: [outputs, D], in x's dtype, or int8 with scales.
        residual: [rows, outputs] or None.
        scales: float32 [outputs], what a step of each output's int8 weights is worth.
        backend: "auto", "native" (float32 and bfloat16 on a CPU, no gradients) or "plain".

    Raises:
        ShapeError: the shapes differ.
    """
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ShapeError(f"linear: weight has shape {list(weight.shape)}, but x has {list(x.shape)}")
    expected = {"residual": (residual, (x.shape[0], weight.shape[0])), "scales": (scales, (weight.shape[0],))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ShapeError(f"linear: {name} has shape {list(tensor.shape)}, but it must be {list(shape)}")
    operands = (x, weight, residual, scales)
    run: Callable[..., Tensor] = choose("linear", BACKENDS, backend, *operands)
    return run(*operands)
