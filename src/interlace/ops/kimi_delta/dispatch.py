"""The public operator `kimi_delta`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import kernels as native
from interlace.ops.core.backends import Backend, choose
from interlace.ops.core.checks import check_recurrence
from interlace.ops.core.chunked_operator import define
from interlace.ops.core.compiled_rule import compiled
from interlace.ops.core.normalise import normalised
from interlace.ops.kimi_delta.chunked import Grid
from interlace.ops.kimi_delta.recurrent import recurrent
from interlace.ops.kimi_delta.step import step

_chunked = define("kimi_delta", Grid)


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


_native = compiled("kimi_delta", Grid) if native.available() else None
BACKENDS = (
    Backend("native", _native, native.refuses, native.DEVICES, native.missing),
    Backend("chunked", _run_chunked),
    Backend("recurrent", recurrent),
)


def kimi_delta(
    query: Float[Tensor, "total H K"],
    key: Float[Tensor, "total H K"],
    value: Float[Tensor, "total G V"],
    log_decay: Float[Tensor, "total G K"],
    beta: Float[Tensor, "total G"],
    *,
    segments: Segments | None = None,
    state: Float[Tensor, "N G K V"] | None = None,
    scale: float | None = None,
    normalise: bool = False,
    backend: str = "auto",
) -> tuple[Float[Tensor, "total G V"], Float[Tensor, "N G K V"]]:
    """S <- diag(exp(log_decay)) S;  S <- S + beta k (v - S^T k)^T;  out = scale S^T q, restarted at every segment.

    Args:
        query, key: [total, H, K], L2-normalised for a stable recurrence, by the caller or by `normalise`.
        value: [total, G, V], G a multiple of H; value head g reads key head g // (G / H).
        log_decay: [total, G, K], one for each channel of the key, at most 0.
        beta: [total, G], the write strength, in [0, 1], or [0, 2] with negative eigenvalues.
        segments: where sequences start; None means one sequence.
        state: [N, G, K, V], what each sequence starts from; None means zeros.
        scale: multiplies the output; K ** -0.5 if None.
        normalise: divide queries and keys by sqrt(sum of squares + 1e-6) first.
        backend: "auto", "native" (float32 and bfloat16 on a CPU), "chunked" or "recurrent".

    Returns:
        out [total, G, V] in value's dtype, and the final states [N, G, K, V] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError: arguments disagree or log_decay is above 0; the message names the argument.
        BackendUnavailable: the named backend cannot serve this call.

    Source: arXiv 2510.26692; README.md beside this file derives the chunked form.
    """
    segments = segments or Segments.from_lengths([query.shape[0]])
    gates = {"log_decay": log_decay, "beta": beta}
    check_recurrence("kimi_delta", query, key, value, gates, segments, state, per_channel="log_decay")
    return kimi_delta_unchecked(query, key, value, log_decay, beta, segments, state, scale, normalise, backend)


def kimi_delta_unchecked(
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
    """`kimi_delta` for callers that built their arguments themselves, as the layer does."""
    scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
    run = choose("kimi_delta", BACKENDS, backend, query, key, value)
    return run(query, key, value, log_decay, beta, segments, state, scale, normalise)
