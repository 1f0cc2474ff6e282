"""The public operator `gated_delta`: checks its arguments and picks a backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core import across, fla, kernels, rules
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta.chunked import GatedDeltaGrid
from interlace.ops.gated_delta.recurrent import recurrent
from interlace.ops.gated_delta.step import step

_chunked = rules.chunked("gated_delta", GatedDeltaGrid, step)


def _native() -> rules.Run:
    from interlace.ops.gated_delta import native

    return native.run


def _native_step() -> Callable[[Recurrence, Tensor], Tensor]:
    from interlace.ops.gated_delta import native

    return native.step


def _plain_step(x: Recurrence, state: Tensor) -> Tensor:
    out, after = step(x)
    state.copy_(after)
    return out


def _refuses_step(x: Recurrence, state: Tensor) -> str | None:
    return rules.refuses(x) if state.dtype == torch.float32 else "the state is not float32"


BACKENDS = (
    rules.triton("gated_delta"),
    fla.backend("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    kernels.backend(_native, rules.refuses),
    Backend("chunked", lambda: _chunked, slow_on=(ANY,)),
    Backend("recurrent", lambda: recurrent, slow_on=(ANY,)),
)
STEPS = (
    rules.triton("gated_delta", "step"),
    kernels.backend(_native_step, _refuses_step, ("cpu",)),
    Backend("plain", lambda: _plain_step, slow_on=(ANY,)),
)


def gated_delta(
    query: Float[Tensor, "total H K"],
    key: Float[Tensor, "total H K"],
    value: Float[Tensor, "total G V"],
    log_decay: Float[Tensor, "total G"],
    beta: Float[Tensor, "total G"],
    *,
    segments: Segments | None = None,
    state: Float[Tensor, "N G K V"] | None = None,
    scale: float | None = None,
    normalise: bool = False,
    backend: str = "auto",
) -> tuple[Float[Tensor, "total G V"], Float[Tensor, "N G K V"]]:
    """S <- exp(log_decay) S;  S <- S + beta k (v - S^T k)^T;  out = scale S^T q, restarted at every segment.

    Args:
        query, key: [total, H, K], L2-normalised for a stable recurrence, by the caller or by `normalise`.
        value: [total, G, V], G a multiple of H; value head g reads key head g // (G / H).
        log_decay: [total, G], at most 0.
        beta: [total, G], the write strength, in [0, 1], or [0, 2] with negative eigenvalues.
        segments: where sequences start; None means one sequence.
        state: [N, G, K, V], what each sequence starts from; None means zeros.
        scale: multiplies the output; K ** -0.5 if None.
        normalise: divide queries and keys by sqrt(sum of squares + 1e-6) first; fused where the backend can.
        backend: "auto", "triton" or "native" (float32 and bfloat16; on a GPU, on a CPU), "fla" (on a GPU, where it is
            installed), "chunked" or "recurrent".

    Returns:
        out [total, G, V] in value's dtype, and the final states [N, G, K, V] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError: arguments disagree or lie on two devices, or log_decay is above 0, which is looked at on a CPU
            alone; the message names the argument.
        BackendUnavailable: the named backend cannot serve this call.

    Source: arXiv 2412.06464, equation 10; README.md beside this file derives the chunked form.
    """
    segments = segments or Segments.from_lengths([query.shape[0]])
    x = Recurrence.of((query, key, value, log_decay, beta), segments, state, scale, normalise)
    x.check("gated_delta", segments.total)
    return run(x, backend)


def run(x: Recurrence, backend: str = "auto", segments: Segments | None = None) -> tuple[Tensor, Tensor]:
    """`gated_delta` for callers that built its operands themselves, as the layer does.

    segments: of the operands, where they may go on on other workers.
    """
    if segments is not None and segments.across is not None:
        return across.recurrence(lambda y: run(y, backend), x, segments)
    return choose("gated_delta", BACKENDS, backend, x)(x)


def gated_delta_step(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "N H K"],
    value: Float[Tensor, "N G V"],
    log_decay: Float[Tensor, "N G"],
    beta: Float[Tensor, "N G"],
    state: Float[Tensor, "N G K V"],
    *,
    scale: float | None = None,
    normalise: bool = False,
) -> Float[Tensor, "N G V"]:
    """One token for each of N sequences; their states are changed in place. Not differentiable.

    Args and Raises as for `gated_delta`; state is float32 and contiguous, and cannot be None.

    Returns:
        out [N, G, V] in value's dtype.
    """
    x = Recurrence.of((query, key, value, log_decay, beta), None, state, scale, normalise)
    x.check("gated_delta_step", query.shape[0])
    if not state.is_contiguous():
        raise ShapeError("gated_delta_step: state is not contiguous, and would not be changed; pass state.contiguous()")
    with torch.no_grad():
        return choose("gated_delta_step", STEPS, "auto", x, state)(x, state)
