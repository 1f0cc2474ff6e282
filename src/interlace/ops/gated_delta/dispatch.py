"""The public operator `gated_delta`: checks its arguments, picks a backend, and is one node for torch.compile."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core import kernels as native
from interlace.ops.core.backends import Backend, choose
from interlace.ops.core.chunked_operator import define
from interlace.ops.core.normalise import normalised
from interlace.ops.gated_delta import native as compiled
from interlace.ops.gated_delta.chunked import Grid
from interlace.ops.gated_delta.recurrent import recurrent
from interlace.ops.gated_delta.step import step

_chunked = define("gated_delta", Grid)


def _run_chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    segments: Segments,
    state: Tensor | None,
    scale: float,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    if normalise:
        query, key = normalised(query), normalised(key)
    if segments.time == 1 and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return step(query, key, value, log_decay, beta, state, scale)
    return _chunked(query, key, value, log_decay, beta, segments.offsets, state, scale, segments.time or 0)


BACKENDS = (
    Backend("native", compiled.run if native.available() else None, native.refuses, native.DEVICES, native.missing),
    Backend("triton", None),
    Backend("fla", None),
    Backend("chunked", _run_chunked),
    Backend("recurrent", recurrent),
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
        backend: "auto", "native" (float32 and bfloat16 on a CPU), "chunked" or "recurrent"; "triton" and "fla" are
            not in this build.

    Returns:
        out [total, G, V] in value's dtype, and the final states [N, G, K, V] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError: arguments disagree or log_decay is above 0; the message names the argument.
        BackendUnavailable: the named backend cannot serve this call.

    Source: arXiv 2412.06464, equation 10; README.md beside this file derives the chunked form.
    """
    segments = segments or Segments.from_lengths([query.shape[0]])
    _check(query, key, value, log_decay, beta, segments.total, segments.count, state)
    return gated_delta_unchecked(query, key, value, log_decay, beta, segments, state, scale, normalise, backend)


def gated_delta_unchecked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    segments: Segments,
    state: Tensor | None,
    scale: float | None = None,
    normalise: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`gated_delta` for callers that built their arguments themselves, as the layer does."""
    scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
    run = choose("gated_delta", BACKENDS, backend, query, key, value)
    return run(query, key, value, log_decay, beta, segments, state, scale, normalise)


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
    rows = query.shape[0]
    _check(query, key, value, log_decay, beta, rows, rows, state)
    if not state.is_contiguous():
        raise ShapeError("gated_delta_step: state is not contiguous, and would not be changed; pass state.contiguous()")
    scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
    on_cpu = query.device.type == "cpu" and state.dtype == torch.float32
    with torch.no_grad():
        if native.available() and on_cpu and native.refuses(query, key, value) is None:
            return compiled.step(query, key, value, log_decay, beta, state, scale, normalise)
        if normalise:
            query, key = normalised(query), normalised(key)
        out, after = step(query, key, value, log_decay, beta, state, scale)
        state.copy_(after)
    return out


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    covered: int,
    count: int,
    state: Tensor | None,
) -> None:
    def fail(name: str, tensor: Tensor, rule: str) -> None:
        raise ShapeError(f"gated_delta: {name} has shape {list(tensor.shape)}, but {rule}")

    if query.ndim != 3:
        fail("query", query, "it must be [total, H, K]")
    total, H, K = query.shape
    if key.shape != query.shape:
        fail("key", key, f"it must equal query's {list(query.shape)}")
    if value.ndim != 3 or value.shape[0] != total or value.shape[1] % H:
        fail("value", value, f"it must be [{total}, G, V] with G a multiple of H = {H}")
    G, V = value.shape[1:]
    if min(H, K, G, V, total) < 1:
        fail("value", value, f"with query's {list(query.shape)} it leaves nothing to compute")
    for name, gate in (("log_decay", log_decay), ("beta", beta)):
        if gate.shape != (total, G):
            fail(name, gate, f"it must be [total, G] = [{total}, {G}]")
    if covered != total:
        raise ShapeError(f"gated_delta: segments cover {covered} tokens, but query has {total}")
    if state is not None and state.shape != (count, G, K, V):
        fail("state", state, f"it must be [N, G, K, V] = [{count}, {G}, {K}, {V}]")
    if not torch.compiler.is_compiling() and bool((log_decay > 0).any()):
        raise ShapeError(
            f"gated_delta: log_decay must be at most 0 (the state would grow), got {float(log_decay.max()):.4g}; "
            "pass the logarithm of the decay"
        )
