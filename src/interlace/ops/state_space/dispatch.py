"""The public operator `state_space`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import across, rules
from interlace.ops.core.backends import choose
from interlace.ops.core.operands import Recurrence
from interlace.ops.state_space.chunked import StateSpaceGrid
from interlace.ops.state_space.recurrent import recurrent
from interlace.ops.state_space.step import step as one_token

BACKENDS = rules.backends("state_space", StateSpaceGrid, one_token, recurrent)


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
        backend: "auto", "triton" or "native" (float32 and bfloat16; on a GPU, on a CPU), "chunked" or "recurrent".

    Returns:
        out [total, G, V] in value's dtype, and the final states [N, G, K, V] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError: arguments disagree or lie on two devices, or log_decay is above 0, which is looked at on a CPU
            alone; the message names the argument.
        BackendUnavailable: the named backend cannot serve this call.

    Source: arXiv 2405.21060; README.md beside this file derives the chunked form.
    """
    segments = segments or Segments.from_lengths([query.shape[0]])
    x = Recurrence.of((query, key, value, log_decay, step), segments, state, scale)
    x.check("state_space", segments.total, strength="step")
    return run(x, backend)


def run(x: Recurrence, backend: str = "auto", segments: Segments | None = None) -> tuple[Tensor, Tensor]:
    """`state_space` for callers that built its operands themselves, as the layer does.

    segments: of the operands, where they may go on on other workers.
    """
    if segments is not None and segments.across is not None:
        return across.recurrence(lambda y: run(y, backend), x, segments, mixes=False)
    return choose("state_space", BACKENDS, backend, x)(x)
