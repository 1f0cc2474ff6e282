"""The public operator `selective_scan`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core import kernels as native
from interlace.ops.core.backends import Backend, choose
from interlace.ops.selective_scan import blocked
from interlace.ops.selective_scan.recurrent import recurrent

# Written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_INPUTS = "Tensor x, Tensor step, Tensor A, Tensor B, Tensor C, Tensor offsets, Tensor? state"
_GRADIENTS = ", ".join(["Tensor"] * 6)


@torch.library.custom_op("interlace::selective_scan", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
def _blocked(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, offsets: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    return blocked.forward(x, step, A, B, C, offsets, state)


@_blocked.register_fake
def _blocked_fake(x, step, A, B, C, offsets, state):  # type: ignore[no-untyped-def]
    dtype = torch.promote_types(x.dtype, torch.float32)
    final = x.new_empty(offsets.shape[0] - 1, *A.shape, dtype=dtype)
    return torch.empty_like(x, memory_format=torch.contiguous_format), final


@torch.library.custom_op(
    "interlace::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor? d_final, {_INPUTS}) -> ({_GRADIENTS})",
)
def _backward(
    d_out: Tensor,
    d_final: Tensor | None,
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    offsets: Tensor,
    state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return blocked.backward(d_out, d_final, x, step, A, B, C, offsets, state)  # type: ignore[return-value]


@_backward.register_fake
def _backward_fake(d_out, d_final, x, step, A, B, C, offsets, state):  # type: ignore[no-untyped-def]
    like = [torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, step, A, B, C)]
    return *like, x.new_empty(0) if state is None else torch.empty_like(state)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, d_out: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, offsets, state = ctx.saved_tensors
    d_out = torch.zeros_like(inputs[0]) if d_out is None else d_out
    *grads, d_state = _backward(d_out.contiguous(), d_final, *inputs, offsets, state)
    return *grads, None, None if state is None else d_state


_blocked.register_autograd(_autograd, setup_context=_setup_context)


def _run_blocked(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, segments: Segments, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    if segments.time != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _blocked(x, step, A, B, C, segments.offsets, state)
    dtype = torch.promote_types(x.dtype, torch.float32)
    steps = step.to(dtype).unsqueeze(-1)
    h = steps * x.to(dtype).unsqueeze(-1) * B.to(dtype).unsqueeze(1)
    if state is not None:
        h.addcmul_(torch.exp(steps * A.to(dtype)), state.to(dtype))
    return (h @ C.to(dtype).unsqueeze(-1)).squeeze(-1).to(x.dtype), h


def _compiled(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, offsets: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """By the kernel; without offsets every token is a segment."""
    x, B, C = (native.rows(y.to(x.dtype)) for y in (x, B, C))
    step, A = native.floats(step), native.floats(A)
    before = None if state is None else native.floats(state)
    count = x.shape[0] if offsets is None else offsets.shape[0] - 1
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    final = x.new_empty(count, *A.shape, dtype=torch.float32)
    tensors = (x, step, A, B, C, None if offsets is None else native.borders(offsets), before)
    sizes = [count, *A.shape, *(y.stride(0) for y in (x, B, C)), native.DTYPES[x.dtype], torch.get_num_threads()]
    native.kernels().selective_scan(
        [native.address(y) for y in tensors], sizes, native.address(out), native.address(final)
    )
    return out, final


@torch.library.custom_op(
    "interlace::selective_scan_native", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)", device_types="cpu"
)
def _native(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, offsets: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _compiled(x, step, A, B, C, offsets, state)


_native.register_fake(_blocked_fake)
_native.register_autograd(_autograd, setup_context=_setup_context)


def _run_native(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, segments: Segments, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    if native.wants_graph(x, step, A, B, C, state):
        return _native(x, step, A, B, C, segments.offsets, state)
    return _compiled(x, step, A, B, C, None if segments.time == 1 else segments.offsets, state)


BACKENDS = (
    Backend("native", _run_native if native.available() else None, native.refuses, native.DEVICES, native.missing),
    Backend("chunked", _run_blocked),
    Backend("recurrent", recurrent),
)


def selective_scan(
    x: Float[Tensor, "total D"],
    step: Float[Tensor, "total D"],
    A: Float[Tensor, "D K"],
    B: Float[Tensor, "total K"],
    C: Float[Tensor, "total K"],
    *,
    segments: Segments | None = None,
    state: Float[Tensor, "N D K"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "total D"], Float[Tensor, "N D K"]]:
    """h <- exp(step A) h + step x B;  out = h C, restarted at every segment.

    Args:
        x: [total, D].
        step: [total, D], dt, at least 0.
        A: [D, K], at most 0.
        B, C: [total, K], shared by all channels.
        segments: where sequences start; None means one sequence.
        state: [N, D, K], what each sequence starts from; None means zeros.
        backend: "auto", "native" (float32 and bfloat16 on a CPU), "chunked" or "recurrent".

    Returns:
        out [total, D] in x's dtype, and the final states [N, D, K] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError: arguments disagree, or A is above 0; the message names the argument.
        BackendUnavailable: the named backend cannot serve this call.

    Source: arXiv 2312.00752; README.md beside this file has the gradients.
    """
    segments = segments or Segments.from_lengths([x.shape[0]])
    if x.ndim != 2 or not x.numel() or x.shape[0] != segments.total:
        raise ShapeError(f"selective_scan: x has shape {list(x.shape)}, but it must be [{segments.total}, D]")
    (total, D), K = x.shape, A.shape[-1]
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {"step": (step, (total, D)), "A": (A, (D, K))}
    expected |= {"B": (B, (total, K)), "C": (C, (total, K))}
    if state is not None:
        expected["state"] = (state, (segments.count, D, K))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ShapeError(f"selective_scan: {name} has shape {list(tensor.shape)}, but it must be {list(shape)}")
    if not torch.compiler.is_compiling() and bool((A > 0).any()):
        raise ShapeError(f"selective_scan: A must be at most 0 (the state would grow), got {float(A.max()):.4g}")
    return selective_scan_unchecked(x, step, A, B, C, segments, state, backend)


def selective_scan_unchecked(
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    segments: Segments,
    state: Tensor | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`selective_scan` for callers that built their arguments themselves, as the layer does."""
    return choose("selective_scan", BACKENDS, backend, x, step)(x, step, A, B, C, segments, state)
