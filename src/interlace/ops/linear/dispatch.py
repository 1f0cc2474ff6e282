"""The public operator `linear`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels
from interlace.ops.core.backends import Backend, choose
from interlace.ops.core.kernels import DTYPES, address
from interlace.ops.core.quantised import Quantised

FEW = 64  # rows; beyond, the library's blocked product is faster
FEW_HALF = 16  # of bfloat16 where the processor multiplies it: the library's product is several times as fast there
WITHOUT_HALF = ("avx2", "avx512", "portable")  # the library's takes 20 times as long as ours, for any number of rows


def _plain(x: Tensor, weight: Tensor | Quantised, residual: Tensor | None) -> Tensor:
    wide = weight.weight(x.dtype) if isinstance(weight, Quantised) else weight.to(x.dtype)
    out = torch.nn.functional.linear(x, wide)
    return out if residual is None else residual + out


def _run_native(x: Tensor, weight: Tensor | Quantised, residual: Tensor | None) -> Tensor:
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    out = x.new_empty(x.shape[0], weight.shape[0])
    sizes = (DTYPES[x.dtype], x.shape[0], *weight.shape, torch.get_num_threads(), address(out))
    if isinstance(weight, Quantised):
        parts, how = kernels.quantised(weight)
        kernels.module().linear_quantised(address(x), parts, how, address(residual), *sizes)
    else:
        kernels.module().linear(address(x), address(weight), address(residual), *sizes)
    return out


def _refuses(x: Tensor, weight: Tensor | Quantised, residual: Tensor | None) -> str | None:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return "it has no gradients"
    given = [weight] if isinstance(weight, Tensor) else []
    given += [] if residual is None else [residual]
    if any(y.dtype != x.dtype for y in given):
        return "the operands' dtypes differ"
    if weight.device.type != "cpu" or any(y.device.type != "cpu" for y in given):
        return "not all tensors lie on the CPU"
    if isinstance(weight, Tensor) and not weight.is_contiguous():
        return "the weight is not contiguous"
    return kernels.refuses(x)


def _pays(x: Tensor, weight: Tensor | Quantised, *_: Tensor | None) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if isinstance(weight, Quantised):
        return True  # the library would multiply by a copy in x's dtype
    if weight.dtype == torch.bfloat16:
        return x.shape[0] <= FEW_HALF or kernels.active() in WITHOUT_HALF
    return x.shape[0] <= FEW


BACKENDS = (
    kernels.backend(lambda: _run_native, _refuses, ("cpu",), when=_pays),
    Backend("plain", lambda: _plain, slow_on=("cpu",)),
)


def linear(
    x: Float[Tensor, "rows D"],
    weight: Float[Tensor, "outputs D"] | Quantised,
    residual: Float[Tensor, "rows outputs"] | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, "rows outputs"]:
    """x weight^T + residual; few rows without gradients by the native kernel, all else by torch's product.

    Weights of few bits take the native kernel for any number of rows.

    Args:
        x: [rows, D].
        weight: [outputs, D], in x's dtype or of few bits.
        residual: [rows, outputs] or None.
        backend: "auto", "native" (float32 and bfloat16 on a CPU, no gradients) or "plain".

    Raises:
        ShapeError: the shapes differ.
    """
    if x.ndim != 2 or len(weight.shape) != 2 or weight.shape[1] != x.shape[1]:
        raise ShapeError(f"linear: weight has shape {list(weight.shape)}, but x has {list(x.shape)}")
    if residual is not None and residual.shape != (shape := (x.shape[0], weight.shape[0])):
        raise ShapeError(f"linear: residual has shape {list(residual.shape)}, but it must be {list(shape)}")
    operands = (x, weight, residual)
    run: Callable[..., Tensor] = choose("linear", BACKENDS, backend, *operands)
    return run(*operands)
