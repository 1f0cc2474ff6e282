"""The public operator `selective_scan`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core import across, gpu, kernels
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.core.operands import check_devices
from interlace.ops.selective_scan import blocked
from interlace.ops.selective_scan.operands import Scan
from interlace.ops.selective_scan.recurrent import recurrent

LARGEST_STATE = 64  # entries of a channel's state, of the Triton kernels


def _native() -> Callable[[Scan], tuple[Tensor, Tensor]]:
    from interlace.ops.selective_scan import native

    return native.run


def _refuses_triton(s: Scan) -> str | None:
    if s.A.shape[-1] > LARGEST_STATE:
        return f"the kernels take at most {LARGEST_STATE} entries to a channel's state, not {s.A.shape[-1]}"
    return kernels.refuses(s.x, s.step, s.A, s.B, s.C, s.state)


BACKENDS = (
    gpu.backend("selective_scan", _refuses_triton, lambda s: (s.x.dtype, (s.A.shape[1],))),
    kernels.backend(_native, lambda x: kernels.refuses(x.x, x.step)),
    Backend("chunked", lambda: blocked.run, slow_on=(ANY,)),
    Backend("recurrent", lambda: recurrent, slow_on=(ANY,)),
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
        backend: "auto", "triton" or "native" (float32 and bfloat16; on a GPU, on a CPU), "chunked" or "recurrent".

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
    check_devices("selective_scan", {"x": x, "step": step, "A": A, "B": B, "C": C, "state": state})
    waits = A.device.type != "cpu" or torch.compiler.is_compiling()  # a look at a GPU's values waits for it
    if not waits and bool((A > 0).any()):
        raise ShapeError(f"selective_scan: A must be at most 0 (the state would grow), got {float(A.max()):.4g}")
    return run(Scan(x, step, A, B, C, segments.offsets, state, segments.time or 0), backend)


def run(x: Scan, backend: str = "auto", segments: Segments | None = None) -> tuple[Tensor, Tensor]:
    """`selective_scan` for callers that built its operands themselves, as the layer does.

    segments: of the operands, where they may go on on other workers.
    """
    if segments is not None and segments.across is not None:
        return across_workers(x, segments, backend)
    return choose("selective_scan", BACKENDS, backend, x)(x)


def across_workers(x: Scan, segments: Segments, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Run a scan whose sequences go on on other workers; `core.across` says how."""
    place: across.Across = segments.across
    if place.by_heads:
        D = x.x.shape[1]
        place.check_divides(D, "channels")
        mine = slice(place.place * D // place.places, (place.place + 1) * D // place.places)
        traded = (across.to_heads(x.x, place), across.to_heads(x.step, place))
        whole, both = place.whole, (across.gather(x.B, place), across.gather(x.C, place))
        out, final = run(Scan(*traded, x.A[mine], *both, whole.offsets, None, whole.time or 0), backend)
        return across.to_tokens(out, place), final
    last = run(x, backend)[1][-1] if place.goes_on else across.nothing(x.A.shape, x.x)
    through = place.passes_through(segments)
    decay = (x.A * x.step.to(x.A.dtype).sum(0)[:, None]).exp() if through else across.nothing(x.A.shape, x.x)
    start = across.handed_on(across.Summary(decay.to(last.dtype), last), segments, mixes=False)
    return run(x._replace(state=start), backend)
