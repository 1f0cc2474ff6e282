"""The public operator `long_convolution`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core import across
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.long_convolution import fourier
from interlace.ops.long_convolution.recurrent import recurrent

BACKENDS = (Backend("fourier", lambda: fourier.run), Backend("recurrent", lambda: recurrent, slow_on=(ANY,)))


def long_convolution(
    x: Float[Tensor, "total D"],
    taps: Float[Tensor, "L D"],
    *,
    segments: Segments | None = None,
    state: AttentionState | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "total D"], AttentionState]:
    """out_t = sum_{j <= t} taps_j x_{t-j}, over the tokens of the same sequence only.

    Args:
        x: [total, D].
        taps: [L, D], the tap of age 0 first; at least as many as the longest sequence has tokens, its past included.
        segments: where sequences start; None means one sequence.
        state: the inputs before each sequence, kept as attention keeps its keys; it grows with them. Used up.
        backend: "auto", "fourier" or "recurrent".

    Returns:
        out [total, D] in x's dtype, and the state after these tokens.

    Raises:
        ShapeError: arguments disagree, or there are too few taps.

    Source: arXiv 2302.10866, section 2; README.md beside this file has the gradients.
    """
    segments = segments or Segments.from_lengths([x.shape[0]])
    if x.ndim != 2 or x.shape[0] != segments.total or not x.numel():
        raise ShapeError(f"long_convolution: x has shape {list(x.shape)}, but it must be [{segments.total}, D]")
    past = [0] * segments.count if state is None else state.positions
    if len(past) != segments.count:
        raise ShapeError(f"long_convolution: state holds {len(past)} sequences, but segments has {segments.count}")
    longest = max(segments.whole.lengths) if state is None else max(map(sum, zip(past, segments.lengths, strict=True)))
    if taps.ndim != 2 or taps.shape[1] != x.shape[1] or taps.shape[0] < longest:
        raise ShapeError(
            f"long_convolution: taps has shape {list(taps.shape)}, but it must be [L, {x.shape[1]}] with L at least "
            f"{longest}, the longest sequence"
        )
    if segments.across is not None:
        return _by_channels(x, taps, segments, backend)
    run = choose("long_convolution", BACKENDS, backend, x, taps, segments)
    kept = x.unsqueeze(1)
    if state is None:
        return run(x, taps, segments), AttentionState.of_tokens(kept, kept[..., :0], segments, None)
    state = state.append(kept, kept[..., :0], segments)
    if segments.time == 1 and not torch.is_grad_enabled():
        return _step(taps, state).to(x.dtype), state
    whole = Segments.from_lengths(state.positions)
    seen = torch.cat([state.keys[row, : state.held(row), 0] for row in range(segments.count)])
    ends = [slice(b - t, b) for (_, b), t in zip(whole.spans(), segments.lengths, strict=True)]
    out = run(seen, taps, whole)
    return torch.cat([out[rows] for rows in ends]), state


def _by_channels(x: Tensor, taps: Tensor, segments: Segments, backend: str) -> tuple[Tensor, AttentionState]:
    """Trade channels for tokens where sequences go on on other workers: each runs whole sequences of some channels."""
    place: across.Across = segments.across
    D = x.shape[1]
    place.check_divides(D, "channels")
    mine = taps[:, place.place * D // place.places : (place.place + 1) * D // place.places]
    out, state = long_convolution(across.to_heads(x, place), mine, segments=place.whole, backend=backend)
    return across.to_tokens(out, place), state


def _step(taps: Tensor, state: AttentionState) -> Tensor:
    """Return the newest token's output of each sequence, [N, D]: one sum over all that it has seen."""
    dtype = torch.promote_types(taps.dtype, torch.float32)
    sums = []
    for row in range(len(state.positions)):
        held = state.held(row)
        sums.append(torch.einsum("td,td->d", state.keys[row, :held, 0].to(dtype), taps[:held].flip(0).to(dtype)))
    return torch.stack(sums)
