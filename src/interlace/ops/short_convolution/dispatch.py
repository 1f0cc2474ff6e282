"""The public operator `short_convolution`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core import kernels as native
from interlace.ops.core.backends import Backend, choose
from interlace.ops.short_convolution import native as compiled
from interlace.ops.short_convolution import shifted
from interlace.ops.short_convolution.recurrent import recurrent

# Written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_INPUTS = "Tensor x, Tensor weight, Tensor offsets, Tensor? state, bool activated, bool biased, SymInt time"


@torch.library.custom_op("interlace::short_convolution", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
def _shifted(
    x: Tensor, weight: Tensor, offsets: Tensor, state: Tensor | None, activated: bool, biased: bool, time: int
) -> tuple[Tensor, Tensor]:
    return shifted.forward(x, weight, offsets, state, activated, biased, time)


@_shifted.register_fake
def _shifted_fake(x, weight, offsets, state, activated, biased, time):  # type: ignore[no-untyped-def]
    windows = x.new_empty(offsets.shape[0] - 1, weight.shape[1] - biased - 1, x.shape[1])
    return torch.empty_like(x, memory_format=torch.contiguous_format), windows


@torch.library.custom_op(
    "interlace::short_convolution_backward",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor? d_windows, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
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
    time: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return shifted.backward(d_out, d_windows, x, weight, offsets, state, activated, biased, time)


@_backward.register_fake
def _backward_fake(d_out, d_windows, x, weight, offsets, state, activated, biased, time):  # type: ignore[no-untyped-def]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), x.new_empty(0) if state is None else torch.empty_like(state)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.activated, ctx.biased, ctx.time = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, d_out: Tensor | None, d_windows: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, offsets, state = ctx.saved_tensors
    d_out = torch.zeros_like(x) if d_out is None else d_out
    options = (ctx.activated, ctx.biased, ctx.time)
    dx, dw, ds = _backward(d_out, d_windows, x, weight, offsets, state, *options)
    return dx, dw, None, None if state is None else ds, None, None, None


_shifted.register_autograd(_autograd, setup_context=_setup_context)


def _run_shifted(
    x: Tensor, weight: Tensor, segments: Segments, state: Tensor | None, activation: str | None, biased: bool
) -> tuple[Tensor, Tensor]:
    activated = activation == "silu"
    if segments.time == 1 and not torch.is_grad_enabled() and state is not None and not torch.compiler.is_compiling():
        window = torch.cat((state, x.unsqueeze(1)), dim=1)
        taps = weight[:, : weight.shape[1] - biased]
        y = (window * taps.T).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
        y = y + weight[:, -1] if biased else y
        return (silu(y) if activated else y).to(x.dtype), window[:, 1:]
    return _shifted(x, weight, segments.offsets, state, activated, biased, segments.time or 0)


BACKENDS = (
    Backend("native", compiled.run if native.available() else None, compiled.refuses, native.DEVICES, native.missing),
    Backend("triton", None),
    Backend("chunked", _run_shifted),
    Backend("recurrent", recurrent),
)


def short_convolution(
    x: Float[Tensor, "total D"],
    weight: Float[Tensor, "D W"],
    *,
    bias: Float[Tensor, " D"] | None = None,
    segments: Segments | None = None,
    state: Float[Tensor, "N W-1 D"] | None = None,
    activation: str | None = "silu",
    backend: str = "auto",
) -> tuple[Float[Tensor, "total D"], Float[Tensor, "N W-1 D"]]:
    """out_t = SiLU(sum_j weight[:, W-1-j] x_{t-j} + bias), over the tokens of the same sequence only.

    Args:
        x: [total, D].
        weight: [D, W], the last column for the current token (the layout of `nn.Conv1d`, without its middle axis).
        bias: [D] or None.
        segments: where sequences start; None means one sequence.
        state: [N, W - 1, D], the inputs before each sequence, oldest first; None means zeros.
        activation: "silu" or None.
        backend: "auto", "native" (float32 and bfloat16 on a CPU), "chunked" or "recurrent"; "triton" is not in this
            build.

    Returns:
        out [total, D] and the last W - 1 inputs of each sequence [N, W - 1, D], both in x's dtype.

    Raises:
        ShapeError: arguments disagree; the message names the argument.
    """
    segments = segments or Segments.from_lengths([x.shape[0]])
    if x.ndim != 2 or x.shape[0] != segments.total:
        raise ShapeError(f"short_convolution: x has shape {list(x.shape)}, but it must be [{segments.total}, D]")
    if x.numel() == 0:
        raise ShapeError(f"short_convolution: x has shape {list(x.shape)}, but it must hold something")
    if weight.ndim != 2 or weight.shape[1] < 1 or weight.shape[0] != x.shape[1]:
        raise ShapeError(f"short_convolution: weight has shape {list(weight.shape)}, but must be [{x.shape[1]}, W]")
    if bias is not None and bias.shape != x.shape[1:]:
        raise ShapeError(f"short_convolution: bias has shape {list(bias.shape)}, but must be [{x.shape[1]}]")
    expected = (segments.count, weight.shape[1] - 1, x.shape[1])
    if state is not None and state.shape != expected:
        raise ShapeError(f"short_convolution: state has shape {list(state.shape)}, but must be {list(expected)}")
    if activation not in ("silu", None):
        raise ShapeError(f"short_convolution: activation must be 'silu' or None, got {activation!r}")
    run = choose("short_convolution", BACKENDS, backend, x, weight)
    columns = weight if bias is None else torch.cat((weight, bias.to(weight.dtype)[:, None]), dim=1)
    return run(x, columns, segments, state, activation, bias is not None)
