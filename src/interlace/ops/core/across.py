"""Sequences that go on over several workers, each of which holds an equal stretch of one flat axis of tokens, in order.

`Segments.across` says so, and operators hand on what their tokens need from the stretches before: a convolution its
last inputs, a recurrence its state, attention its keys and values. Every hand-over is differentiable, and every worker
takes part in each of them, also where it needs nothing: a collective that one worker leaves out stops all.

A recurrence is linear in the state it starts from, S' = P S + B. Each worker runs its stretch from nothing, which gives
B, and hands (P, B) to all; from those, each finds the state that its own first sequence starts from, and runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.core.custom_op import Signature, custom_op, define
from interlace.ops.core.operands import Recurrence


@dataclass(frozen=True)
class Across:
    """Where a stretch lies on the axis that several workers hold.

    Attributes:
        group: the name of torch's process group; its ranks hold the stretches in order.
        place, places: which stretch lies here, counted from 0, and how many there are.
        whole: the sequences of the whole axis.
        before: tokens of the first sequence here that lie in earlier stretches.
        goes_on: whether the last sequence here goes on in the next stretch.
        by_heads: whether recurrences trade heads for tokens, so that each worker runs whole sequences of some heads;
            else they hand on their states.
    """

    group: str
    place: int
    places: int
    whole: Segments
    before: int
    goes_on: bool
    by_heads: bool = False

    def segments(self, size: int) -> Segments:
        """Return the sequences of this stretch of `size` tokens, which know that they go on elsewhere."""
        first, last = self.place * size, (self.place + 1) * size
        inner = [o for o in self.whole.offsets.tolist() if first < o < last]
        found = Segments.from_lengths([b - a for a, b in zip([first, *inner], [*inner, last], strict=True)])
        return Segments(found.offsets, found.total, None, found.bound, self)

    def passes_through(self, segments: Segments) -> bool:
        """Return whether one sequence fills this stretch, from one before it to one after it."""
        return segments.count == 1 and self.before > 0 and self.goes_on

    def check_divides(self, size: int, what: str) -> None:
        """Raise ShapeError unless so many heads or channels can be traded among all workers."""
        if size % self.places:
            raise ShapeError(f"context: {size} {what} cannot be traded among {self.places} workers; hand on states")

    @staticmethod
    def of(whole: Segments, group: str, place: int, places: int, by_heads: bool = False) -> Across:
        """Return the place of one worker's stretch.

        Raises:
            ShapeError: the axis cannot be cut into so many equal stretches.
        """
        if whole.total % places:
            raise ShapeError(f"segments: {whole.total} tokens cannot be cut into {places} equal stretches")
        size = whole.total // places
        first, last = place * size, (place + 1) * size
        offsets = whole.offsets.tolist()
        start = max(o for o in offsets if o <= first)
        return Across(group, place, places, whole, first - start, last not in offsets, by_heads)


def _resolved(group: str) -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]


def _collective(name: str, before: str) -> Callable[..., Any]:
    """Return a collective of torch by its name, or by the one that it had before 2.13."""
    found: Callable[..., Any] = getattr(torch.distributed, name, None) or getattr(torch.distributed, before)
    return found


def _gathered(x: Tensor, group: str, places: int) -> Tensor:
    out = x.new_empty(places * x.shape[0], *x.shape[1:])
    _collective("all_gather_single", "all_gather_into_tensor")(out, x.contiguous(), group=_resolved(group))
    return out


def _summed(x: Tensor, group: str, places: int) -> Tensor:
    out = x.new_empty(x.shape[0] // places, *x.shape[1:])
    _collective("reduce_scatter_single", "reduce_scatter_tensor")(out, x.contiguous(), group=_resolved(group))
    return out


def _traded(x: Tensor, group: str, *_: Any) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.distributed.all_to_all_single(out, x.contiguous(), group=_resolved(group))
    return out


_INPUTS = "Tensor x, str group, int places"
_gather = custom_op(
    "gather",
    Signature(_INPUTS, ("x",), outputs=1),
    _gathered,
    lambda d_out, x, group, places: _summed(d_out, group, places),
    lambda x, _, places: x.new_empty(places * x.shape[0], *x.shape[1:]),
)
_trade = custom_op(
    "trade",
    Signature(_INPUTS, ("x",), outputs=1),
    _traded,
    lambda d_out, x, group, places: _traded(d_out, group),
    lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
)


def _reduced(x: Tensor, group: str) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(out, group=_resolved(group))
    return out


reduce = define(
    "reduce",
    "(Tensor x, str group) -> Tensor",
    _reduced,
    lambda x, group: torch.empty_like(x, memory_format=torch.contiguous_format),
)
"""(x, the name of a process group) to the sum of x over its workers; not differentiable by itself."""


def gather(x: Tensor, across: Across) -> Tensor:
    """Return the stretches of all workers, [places x n, ...], of x [n, ...]."""
    return _gather(x, across.group, across.places)


def own(x: Tensor, across: Across) -> Tensor:
    """Return this worker's stretch of the whole axis [places x n, ...]."""
    size = x.shape[0] // across.places
    return x[across.place * size : (across.place + 1) * size]


def to_heads(x: Tensor, across: Across) -> Tensor:
    """Trade heads for tokens: [n, heads, ...] to [places x n, heads / places, ...]."""
    parts = x.unflatten(1, (across.places, -1)).movedim(1, 0)
    return _trade(parts.contiguous(), across.group, across.places).flatten(0, 1)


def to_tokens(x: Tensor, across: Across) -> Tensor:
    """Trade tokens for heads: [places x n, heads / places, ...] to [n, heads, ...]."""
    parts = _trade(x.unflatten(0, (across.places, -1)), across.group, across.places)
    return parts.movedim(0, 1).flatten(1, 2)


def window(x: Tensor, history: int, segments: Segments) -> Tensor:
    """Return [N, history, D], the inputs of a convolution before each sequence here, of x [n, D].

    Raises:
        ShapeError: a stretch is shorter than the history.
    """
    across: Across = segments.across
    if x.shape[0] < history:
        raise ShapeError(
            f"segments: a stretch of {x.shape[0]} tokens is shorter than the {history} that a convolution looks back; "
            "use fewer workers for the context, or longer rows"
        )
    tails = gather(x[x.shape[0] - history :], across).unflatten(0, (across.places, -1))
    ages = torch.arange(history, 0, -1, device=x.device)
    first = torch.where((ages <= across.before)[:, None], tails[max(across.place - 1, 0)], 0.0)
    return torch.cat((first[None], x.new_zeros(segments.count - 1, *first.shape)))


def nothing(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return float32 zeros that are a result of `like`, so that a hand-over of them has a backward like any other."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32)) + like[:0].sum()


class Summary(NamedTuple):
    """What a stretch does to the state of a sequence that goes through it, S' = P S + B.

    Attributes:
        P: [G, K, K]; [G, K, 1] or [D, K], element by element, where channels do not mix.
        B: like the state.
    """

    P: Tensor
    B: Tensor


def handed_on(mine: Summary, segments: Segments, mixes: bool) -> Tensor:
    """Return the states [N, ...] that the sequences of a stretch start from.

    Args:
        mine: of the last sequence here; P is nothing unless it is the first one too and began earlier.
        mixes: whether P is a matrix.
    """
    across: Across = segments.across
    both = gather(torch.cat(mine, dim=-1)[None], across)  # one collective, of which every worker uses a part
    P, B = both.split((mine.P.shape[-1], mine.B.shape[-1]), dim=-1)
    state = B[0] * 0
    with torch.autocast(B.device.type, enabled=False):  # states stay float32
        for place in range(across.place):
            state = (P[place] @ state if mixes else P[place] * state) + B[place]
    if not across.before:  # zeros that are a result of the gather: every worker takes part in its backward
        state = torch.where(torch.zeros_like(state, dtype=torch.bool), state, 0.0)
    return torch.cat((state[None], state.new_zeros(segments.count - 1, *state.shape)))


Run = Callable[[Recurrence], tuple[Tensor, Tensor]]


def recurrence(run: Run, x: Recurrence, segments: Segments, mixes: bool = True) -> tuple[Tensor, Tensor]:
    """Run a rule on sequences that go on over several workers.

    Args:
        run: the rule.
        x: its operands here, without a state.
        mixes: whether a write mixes the channels of the key, as the delta rules do; else each decays alone.
    """
    across: Across = segments.across
    if across.by_heads:
        return _by_heads(run, x, across)
    through = across.passes_through(segments)
    G, K, V = x.value.shape[1], x.key.shape[2], x.value.shape[2]
    last = run(x)[1][-1] if across.goes_on else nothing((G, K, V), x.value)
    if not through:
        P = nothing((G, K, K if mixes else 1), x.value)
    elif mixes:
        start = torch.eye(K, dtype=last.dtype, device=last.device).expand(1, G, K, K)
        still = x.value.new_zeros(x.value.shape[0], G, K)
        P = run(x._replace(value=still, state=start.contiguous()))[1][0]
    else:
        P = x.log_decay.to(last.dtype).sum(0).exp()[:, None, None].expand(G, K, 1)
    return run(x._replace(state=handed_on(Summary(P, last), segments, mixes)))


def _by_heads(run: Run, x: Recurrence, across: Across) -> tuple[Tensor, Tensor]:
    places, H, G = across.places, x.query.shape[1], x.value.shape[1]
    if G % places or (H % places and places % H):
        raise ShapeError(f"context: {G} value heads and {H} key heads cannot be traded among {places} workers")
    query, key = (y if H % places == 0 else y.repeat_interleave(places // H, dim=1) for y in (x.query, x.key))
    given = [to_heads(y, across) for y in (query, key, x.value, x.log_decay, x.strength)]
    out, final = run(Recurrence.of(given, across.whole, None, x.scale, x.normalise))
    return to_tokens(out, across), final
