"""The public operator `kimi_delta`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import across, fla, rules
from interlace.ops.core.backends import choose
from interlace.ops.core.operands import Recurrence
from interlace.ops.kimi_delta.chunked import KimiDeltaGrid
from interlace.ops.kimi_delta.recurrent import recurrent
from interlace.ops.kimi_delta.step import step as one_token

BACKENDS = (
    *rules.backends("kimi_delta", KimiDeltaGrid, one_token, recurrent),
    fla.backend("fla.ops.kda", "chunk_kda"),
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
        backend: "auto", "triton" or "native" (float32 and bfloat16; on a GPU, on a CPU), "fla" (on a GPU, where it is
            installed), "chunked" or "recurrent".

    Returns:
        out [total, G, V] in value's dtype, and the final states [N, G, K, V] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError: arguments disagree or lie on two devices, or log_decay is above 0, which is looked at on a CPU
            alone; the message names the argument.
        BackendUnavailable: the named backend cannot serve this call.

    Source: arXiv 2510.26692; README.md beside this file derives the chunked form.
    """
    segments = segments or Segments.from_lengths([query.shape[0]])
    x = Recurrence.of((query, key, value, log_decay, beta), segments, state, scale, normalise)
    x.check("kimi_delta", segments.total, by_channel=True)
    return run(x, backend)


def run(x: Recurrence, backend: str = "auto", segments: Segments | None = None) -> tuple[Tensor, Tensor]:
    """`kimi_delta` for callers that built its operands themselves, as the layer does.

    segments: of the operands, where they may go on on other workers.
    """
    if segments is not None and segments.across is not None:
        return across.recurrence(lambda y: run(y, backend), x, segments)
    return choose("kimi_delta", BACKENDS, backend, x)(x)
