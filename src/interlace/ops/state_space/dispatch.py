"""The public operator `state_space`."""

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
from interlace.ops.state_space.chunked import Grid
from interlace.ops.state_space.recurrent import recurrent
from interlace.ops.state_space.step import step as one_token

_chunked = define("state_space", Grid)


def _run_chunked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    step: Tensor,
    segments: Segments,
    state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    if segments.time == 1 and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return one_token(query, key, value, log_decay, step, state, scale)
    return _chunked(query, key, value, log_decay, step, segments.offsets, state, scale, segments.time or 0)


_native = compiled("state_space", Grid) if native.available() else None
BACKENDS = (
    Backend("native", _native, native.refuses, native.DEVICES, native.missing),
    Backend("chunked", _run_chunked),
    Backend("recurrent", recurrent),
)


def state_space(
    query: Float[Tensor, "total H K"],
    key: Float[Tensor, "total H K"],
    value: Float[Tensor, "total G V"],
    log_decay: Float[Tensor, "total G"],
    step: Float[Tensor, "total G"],
    *,
    segments: Segments | None = None,
    state: Float[Tensor, "N G K V"] | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Float[Tensor, "total G V"], Float[Tensor, "N G K V"]]:
    """S <- exp(log_decay) S + step k v^T;  out = scale S^T q, restarted at every segment.

    Args:
        query, key: [total, H, K], Mamba-2's C and B; H is its number of groups.
        value: [total, G, V], its x, G a multiple of H; value head g reads key head g // (G / H).
        log_decay: [total, G], dt A, at most 0.
        step: [total, G], dt.
        segments: where sequences start; None means one sequence.
        state: [N, G, K, V], what each sequence starts from; None means zeros.
        scale: multiplies the output.
        backend: "auto", "native" (float32 and bfloat16 on a CPU), "chunked" or "recurrent".

    Returns:
        out [total, G, V] in value's dtype, and the final states [N, G, K, V] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError: arguments disagree or log_decay is above 0; the message names the argument.
        BackendUnavailable: the named backend cannot serve this call.

    Source: arXiv 2405.21060; README.md beside this file derives the chunked form.
    """
    segments = segments or Segments.from_lengths([query.shape[0]])
    gates = {"log_decay": log_decay, "step": step}
    check_recurrence("state_space", query, key, value, gates, segments, state)
    return state_space_unchecked(query, key, value, log_decay, step, segments, state, scale, backend)


def state_space_unchecked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    step: Tensor,
    segments: Segments,
    state: Tensor | None,
    scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`state_space` for callers that built their arguments themselves, as the layer does."""
    run = choose("state_space", BACKENDS, backend, query, key, value)
    return run(query, key, value, log_decay, step, segments, state, float(scale))
