"""The public operator `cross_entropy_`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import gpu, kernels
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.core.kernels import DTYPES, address
from interlace.ops.cross_entropy.plain import plain


def _run_native(logits: Tensor, targets: Tensor, ignored: int, factor: float) -> Tensor:
    targets, losses = targets.contiguous(), logits.new_empty(logits.shape[0], dtype=torch.float32)
    sizes = [DTYPES[logits.dtype], *logits.shape, ignored, factor, torch.get_num_threads()]
    kernels.module().cross_entropy(address(logits), address(targets), *sizes, address(losses))
    torch.autograd.graph.increment_version(logits)
    return losses


def _refuses(logits: Tensor, _: Tensor, __: int, factor: float | Tensor) -> str | None:
    if isinstance(factor, Tensor):
        return "each row has a factor of its own"
    return kernels.refuses(logits) if logits.is_contiguous() else "logits are not contiguous"


def _refuses_gpu(logits: Tensor, *_: Any) -> str | None:
    return kernels.refuses(logits) if logits.shape[1] == 1 or logits.stride(1) == 1 else "rows of logits have gaps"


BACKENDS = (
    gpu.backend("cross_entropy", _refuses_gpu, lambda logits, *_: (logits.dtype, (logits.shape[1],))),
    kernels.backend(lambda: _run_native, _refuses, ("cpu",)),
    Backend("plain", lambda: plain, slow_on=(ANY,)),
)


def cross_entropy_(
    logits: Float[Tensor, "rows D"],
    targets: Int64[Tensor, " rows"],
    *,
    ignored: int = -100,
    factor: float | Float[Tensor, " rows"] = 1.0,
    backend: str = "auto",
) -> Float[Tensor, " rows"]:
    """-log softmax(logits)[target] of each row; the logits are replaced by `factor` times their gradient.

    Args:
        logits: [rows, D], changed in place.
        targets: int64 [rows], each in [0, D), or `ignored`.
        ignored: the target of rows that do not count: loss 0, gradient 0.
        factor: multiplies the gradient; a tensor has one for each row.
        backend: "auto", "triton" (float32 and bfloat16 on a GPU), "native" (the same on a CPU; one factor for all rows)
            or "plain".

    Returns:
        Losses in nats [rows], in float32 at least.

    Raises:
        ShapeError: the shapes differ, or a target on the CPU is out of range. Those on a GPU are not waited for: there,
            the loss and the gradient of such a row are NaN, or PyTorch stops the process.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ShapeError(f"cross_entropy_: targets has shape {list(targets.shape)}, but logits {list(logits.shape)}")
    if targets.dtype != torch.int64 or targets.device != logits.device:
        raise ShapeError(
            f"cross_entropy_: targets must be int64 on {logits.device}, got {targets.dtype} on {targets.device}"
        )
    if targets.numel() and targets.device.type == "cpu":
        low, high = (int(x) for x in targets.where(targets != ignored, 0).aminmax())
        if low < 0 or high >= logits.shape[1]:
            raise ShapeError(
                f"cross_entropy_: targets must lie in [0, {logits.shape[1]}) or be {ignored}, got {low} to {high}"
            )
    operands = (logits, targets, ignored, factor)
    run: Callable[..., Tensor] = choose("cross_entropy_", BACKENDS, backend, *operands)
    return run(*operands)
