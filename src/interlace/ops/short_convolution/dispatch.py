"""The public operator `short_convolution`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core import across, gpu, kernels
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.core.operands import check_devices
from interlace.ops.short_convolution import native, shifted
from interlace.ops.short_convolution.operands import Convolution
from interlace.ops.short_convolution.recurrent import recurrent


def _refuses_triton(c: Convolution) -> str | None:
    if c.history >= gpu.MOST_TAPS:
        return f"the kernels take at most {gpu.MOST_TAPS} taps, not {c.history + 1}"
    return kernels.refuses(c.x, c.weight, c.state)


def side_by_side(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of both in one memory, as the operator reads them: it then copies neither in a call."""
    columns = torch.cat((weight, bias.to(weight.dtype)[:, None]), dim=1)
    return columns[:, :-1], columns[:, -1]


def _columns(weight: Tensor, bias: Tensor) -> Tensor:
    """Return [D, W + 1], the bias last."""
    D, W = weight.shape
    if weight.stride() == (W + 1, 1) and bias.stride() == (W + 1,) and not kernels.wants_graph(weight, bias):
        there = bias.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        if there and bias.dtype == weight.dtype and bias.storage_offset() == weight.storage_offset() + W:
            return weight.as_strided((D, W + 1), (W + 1, 1))
    return torch.cat((weight, bias.to(weight.dtype)[:, None]), dim=1)


BACKENDS = (
    gpu.backend("short_convolution", _refuses_triton, lambda c: (c.x.dtype, (c.history + 1,))),
    kernels.backend(lambda: native.run, native.refuses),
    Backend("chunked", lambda: shifted.run, slow_on=(ANY,)),
    Backend("recurrent", lambda: recurrent, slow_on=(ANY,)),
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
        backend: "auto", "triton" or "native" (float32 and bfloat16; on a GPU, on a CPU), "chunked" or "recurrent".

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
    if segments.across is not None:
        state = across.window(x, weight.shape[1] - 1, segments)
    check_devices("short_convolution", {"x": x, "weight": weight, "bias": bias, "state": state})
    columns = weight if bias is None else _columns(weight, bias)
    more = (segments.offsets, state, activation == "silu", bias is not None, segments.time or 0)
    c = Convolution(x, columns, *more)
    return choose("short_convolution", BACKENDS, backend, c)(c)
