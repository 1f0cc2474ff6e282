"""The short convolution by the compiled kernels, SiLU fused, as torch custom ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import kernels as native
from interlace.ops.core.kernels import DTYPES, address, rows

# Written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_INPUTS = "Tensor x, Tensor weight, Tensor offsets, Tensor? state, bool activated, bool biased"


def prepare(
    x: Tensor, weight: Tensor, offsets: Tensor, state: Tensor | None, activated: bool, biased: bool
) -> tuple[list[Tensor | None], list[int]]:
    """The tensors as the kernels read them, and sizes, strides and dtypes; the tensors must outlive the call."""
    x, weight = rows(x), weight.contiguous()
    state = None if state is None else state.to(x.dtype).contiguous()
    sizes = [
        offsets.shape[0] - 1,
        x.shape[1],
        weight.shape[1] - biased,
        x.stride(0),
        DTYPES[x.dtype],
        DTYPES[weight.dtype],
    ]
    return [x, weight, native.borders(offsets), state], [*sizes, activated, biased, torch.get_num_threads()]


@torch.library.custom_op(
    "interlace::short_convolution_native",
    mutates_args=(),
    schema=f"({_INPUTS}) -> (Tensor, Tensor)",
    device_types="cpu",
)
def _forward(
    x: Tensor, weight: Tensor, offsets: Tensor, state: Tensor | None, activated: bool, biased: bool
) -> tuple[Tensor, Tensor]:
    out, windows = _empty(x, weight, offsets, state, activated, biased)
    tensors, sizes = prepare(x, weight, offsets, state, activated, biased)
    native.kernels().short_convolution_forward([address(t) for t in tensors], sizes, address(out), address(windows))
    return out, windows


@_forward.register_fake
def _empty(x, weight, offsets, state, activated, biased):  # type: ignore[no-untyped-def]
    windows = x.new_empty(offsets.shape[0] - 1, weight.shape[1] - biased - 1, x.shape[1])
    return torch.empty_like(x, memory_format=torch.contiguous_format), windows


@torch.library.custom_op(
    "interlace::short_convolution_native_backward",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor? d_windows, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def _backward(
    d_out: Tensor,
    d_windows: Tensor | None,
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    state: Tensor | None,
    activated: bool,
    biased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors, sizes = prepare(x, weight, offsets, state, activated, biased)
    d_out = d_out.to(x.dtype).contiguous()
    d_windows = None if d_windows is None else d_windows.to(x.dtype).contiguous()
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_weight = weight.new_empty(weight.shape, dtype=torch.float32)
    d_state = x.new_empty(0) if state is None else torch.empty_like(tensors[3])  # type: ignore[arg-type]
    given, to = [address(d_out), address(d_windows)], [address(dx), address(d_weight)]
    to.append(native.NONE if state is None else address(d_state))
    native.kernels().short_convolution_backward([address(t) for t in tensors], sizes, given, to)
    return dx, d_weight.to(weight.dtype), d_state if state is None else d_state.to(state.dtype)


@_backward.register_fake
def _empty_gradients(d_out, d_windows, x, weight, offsets, state, activated, biased):  # type: ignore[no-untyped-def]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return (
        dx,
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        x.new_empty(0) if state is None else torch.empty_like(state, memory_format=torch.contiguous_format),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.activated, ctx.biased = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, d_out: Tensor | None, d_windows: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, offsets, state = ctx.saved_tensors
    d_out = torch.zeros_like(x) if d_out is None else d_out
    dx, d_weight, d_state = _backward(d_out, d_windows, x, weight, offsets, state, ctx.activated, ctx.biased)
    return dx, d_weight, None, None if state is None else d_state, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def refuses(x: Tensor, weight: Tensor) -> str | None:
    """Why the kernels cannot serve these tensors, or None."""
    if weight.shape[1] > 64:
        return f"the kernels take at most 64 taps, not {weight.shape[1]}"
    return native.refuses(x, weight)


def run(
    x: Tensor, weight: Tensor, segments: Segments, state: Tensor | None, activation: str | None, biased: bool
) -> tuple[Tensor, Tensor]:
    """`short_convolution` on CPU tensors of float32 or bfloat16; where biased, weight's last column is the bias."""
    return _forward(x, weight, segments.offsets, state, activation == "silu", biased)
