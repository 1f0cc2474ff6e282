"""The public operator `experts`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels as native
from interlace.ops.core.backends import Backend, choose
from interlace.ops.core.kernels import DTYPES
from interlace.ops.experts import sorted as by_sorting
from interlace.ops.experts.plain import plain

# Written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_INPUTS = "Tensor x, Tensor chosen, Tensor weights, Tensor first, Tensor second, str activation"


@torch.library.custom_op("interlace::experts", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _sorted(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    return by_sorting.forward(x, chosen, weights, first, second, activation)


@_sorted.register_fake
def _sorted_fake(x, chosen, weights, first, second, activation):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], second.shape[1])


@torch.library.custom_op(
    "interlace::experts_backward",
    mutates_args=(),
    schema=f"(Tensor d_out, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    d_out: Tensor, x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return by_sorting.backward(d_out, x, chosen, weights, first, second, activation)


@_backward.register_fake
def _backward_fake(d_out, x, chosen, weights, first, second, activation):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, weights, first, second))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    d_x, d_weights, d_first, d_second = _backward(d_out.contiguous(), *ctx.saved_tensors, ctx.activation)
    return d_x, None, d_weights, d_first, d_second, None


_sorted.register_autograd(_autograd, setup_context=_setup_context)


def _compiled(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    """By the kernel, which reads a chosen expert once for every row that chose it."""
    x, chosen, weights = x.contiguous(), chosen.contiguous(), native.floats(weights)
    first, second = first.to(x.dtype).contiguous(), second.to(x.dtype).contiguous()
    out = x.new_empty(x.shape[0], second.shape[1])
    sizes = [DTYPES[x.dtype], *chosen.shape, x.shape[1], first.shape[1], second.shape[2], second.shape[1]]
    sizes += [activation == "swiglu", torch.get_num_threads(), first.shape[0]]
    operands = (x, chosen, weights, first, second)
    if not native.kernels().experts([native.address(y) for y in operands], sizes, native.address(out)):
        raise ShapeError(
            f"experts: chosen must lie in [0, {first.shape[0]}), got {int(chosen.min())} to {int(chosen.max())}"
        )
    return out


@torch.library.custom_op(
    "interlace::experts_native", mutates_args=(), schema=f"({_INPUTS}) -> Tensor", device_types="cpu"
)
def _native(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    return _compiled(x, chosen, weights, first, second, activation)


_native.register_fake(_sorted_fake)
_native.register_autograd(_autograd, setup_context=_setup_context)


def _run_native(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    run = _native if native.wants_graph(x, weights, first, second) else _compiled
    return run(x, chosen, weights, first, second, activation)


def _refuses(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor) -> str | None:
    return native.refuses(x, first, second)


FEW = 4  # rows; beyond, an expert's rows are one product
BACKENDS = (
    Backend("native", _run_native if native.available() else None, _refuses, native.DEVICES, native.missing),
    Backend("sorted", _sorted),
    Backend("plain", plain),
)


def experts(
    x: Float[Tensor, "rows D"],
    chosen: Int64[Tensor, "rows k"],
    weights: Float[Tensor, "rows k"],
    first: Float[Tensor, "E A D"],
    second: Float[Tensor, "E outputs I"],
    *,
    activation: str = "swiglu",
    backend: str = "auto",
) -> Float[Tensor, "rows outputs"]:
    """out_t = sum_i weights_ti second_e act(first_e x_t), e = chosen_ti; no token is dropped.

    Args:
        x: [rows, D].
        chosen: int64 [rows, k], the experts of each row.
        weights: [rows, k], what each counts.
        first: [E, A, D], A = 2 I (gate, then up) for "swiglu", I for "relu2"; cast to x's dtype expert by expert.
        second: [E, outputs, I].
        activation: "swiglu", SiLU(gate) up, or "relu2", ReLU squared.
        backend: "auto", "native" (float32 and bfloat16 on a CPU; for a few rows), "sorted" or "plain".

    Returns:
        [rows, outputs] in x's dtype; sums over choices are float32.

    Raises:
        ShapeError: arguments disagree, or a choice names no expert; the message names the argument.
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
    operands = (x, chosen, weights, first, second)
    if backend == "auto":
        few = x.shape[0] <= FEW and first.dtype == x.dtype and BACKENDS[0].obstacle(*operands) is None
        return (_run_native if few else _sorted)(*operands, activation)
    return choose("experts", BACKENDS, backend, *operands)(*operands, activation)
