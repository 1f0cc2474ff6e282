"""The public operator `experts`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import gpu, kernels
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.core.operands import check_devices
from interlace.ops.core.quantised import Quantised
from interlace.ops.experts import native, sorted
from interlace.ops.experts.plain import plain

FEW = 64  # rows; beyond, an expert's rows are one product
PAIRS = (0, 24, 96)  # that an expert has on average: from each on, the Triton kernels take larger tiles


def _refuses_gpu(x: Tensor, _: Tensor, weights: Tensor, first: Tensor, second: Tensor, __: str) -> str | None:
    if min(x.shape[1], *first.shape, *second.shape) == 0:
        return "there is nothing to multiply"
    return kernels.refuses(x, weights, first, second)


def _selects(x: Tensor, chosen: Tensor, *rest: Any) -> tuple[torch.dtype, tuple[int, ...]]:
    _, first, second, _ = rest
    pairs = x.shape[0] * chosen.shape[1] // max(1, first.shape[0])
    return x.dtype, (x.shape[1], second.shape[2], second.shape[1], max(n for n in PAIRS if n <= pairs))


BACKENDS = (
    gpu.backend("experts", _refuses_gpu, _selects),
    kernels.backend(lambda: native.run, native.refuses, rows=FEW, when=native.of_one_dtype),
    Backend("sorted", lambda: sorted.run, slow_on=(ANY,)),
    Backend("plain", lambda: plain, slow_on=(ANY,)),
)

OF_FEW_BITS = (
    kernels.backend(lambda: native.immediately, native.refuses, rows=FEW),
    Backend("sorted", lambda: sorted.forward, slow_on=(ANY,)),
)


def experts(
    x: Float[Tensor, "rows D"],
    chosen: Int64[Tensor, "rows k"],
    weights: Float[Tensor, "rows k"],
    first: Float[Tensor, "E A D"] | Quantised,
    second: Float[Tensor, "E outputs I"] | Quantised,
    *,
    activation: str = "swiglu",
    backend: str = "auto",
) -> Float[Tensor, "rows outputs"]:
    """out_t = sum_i weights_ti second_e act(first_e x_t), e = chosen_ti; no token is dropped.

    Args:
        x: [rows, D].
        chosen: int64 [rows, k], the experts of each row.
        weights: [rows, k], what each counts.
        first: [E, A, D], A = 2 I (gate, then up) for "swiglu", I for "relu2"; cast to x's dtype expert by expert, or of
            few bits.
        second: [E, outputs, I], as first.
        activation: "swiglu", SiLU(gate) up, or "relu2", ReLU squared.
        backend: "auto", "triton" (float32 and bfloat16 on a GPU), "native" (the same on a CPU; for a few rows),
            "sorted" or "plain".

    Returns:
        [rows, outputs] in x's dtype; sums over choices are float32.

    Raises:
        ShapeError: arguments disagree, or a choice names no expert; the message names the argument. "triton" does not
            wait for the choices: the row of one that names no expert is NaN.
    """
    if activation not in ("swiglu", "relu2"):
        raise ShapeError(f"experts: activation must be 'swiglu' or 'relu2', got {activation!r}")
    inner = second.shape[-1] * (2 if activation == "swiglu" else 1)
    if x.ndim != 2 or first.shape[2:] != x.shape[1:] or second.shape[0] != first.shape[0] or first.shape[1] != inner:
        raise ShapeError(
            f"experts: x has shape {list(x.shape)}, first {list(first.shape)} and second {list(second.shape)}, but "
            f"they must be [rows, D], [E, {'2 I' if activation == 'swiglu' else 'I'}, D] and [E, outputs, I]"
        )
    if chosen.shape != weights.shape or chosen.ndim != 2 or chosen.shape[0] != x.shape[0]:
        raise ShapeError(
            f"experts: chosen has shape {list(chosen.shape)} and weights {list(weights.shape)}, but both must be "
            f"[{x.shape[0]}, k]"
        )
    check_devices("experts", {"x": x, "chosen": chosen, "weights": weights, "first": first, "second": second})
    operands = (x, chosen, weights, first, second, activation)
    table = OF_FEW_BITS if isinstance(first, Quantised) else BACKENDS
    run: Callable[..., Tensor] = choose("experts", table, backend, *operands)
    return run(*operands)
