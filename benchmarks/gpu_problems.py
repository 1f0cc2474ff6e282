"""Operators on random inputs, to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from gpu_jobs import Shape
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from interlace.base.segments import Segments
from interlace.ops import attention, decay_gate, experts, rms_norm, short_convolution, swiglu
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta import dispatch as gated_delta
from interlace.ops.kimi_delta import dispatch as kimi_delta
from interlace.ops.selective_scan import dispatch as selective_scan
from interlace.ops.selective_scan.operands import Scan
from interlace.ops.state_space import dispatch as state_space
from interlace.train.objectives.next_token import next_token_loss

RULE = {"gated_delta": gated_delta, "kimi_delta": kimi_delta, "state_space": state_space}
PAST = 2048  # tokens that attention has seen before the one that is timed


@dataclass
class Problem:
    """An operator on inputs.

    Attributes:
        wanted: inputs that get gradients.
        others: what is read beside them.
        call: a backend's name to outputs; all of them but `kept` get gradients.
        backend: what is measured.
        plain: what its outputs are compared with; "" for `truth`.
        truth: computes the outputs by other means.
        kept: how many of the last outputs are states, which are written but get no gradient.
    """

    wanted: list[Tensor]
    others: list[Tensor]
    call: Callable[[str], Sequence[Tensor]]
    backend: str = "triton"
    plain: str = "chunked"
    truth: Callable[[], Sequence[Tensor]] | None = None
    kept: int = 0

    @property
    def read(self) -> int:
        """Bytes of all inputs."""
        return sum(x.nbytes for x in (*self.wanted, *self.others))

    def outputs(self, backend: str = "") -> list[Tensor]:
        """Return what is differentiated, [0], and states."""
        return list(self.call(backend or self.backend))


def problem(shape: Shape, where: torch.device, seed: int = 0) -> Problem:
    """Return an operator on fresh random inputs of a shape, bfloat16; one token to a sequence starts from a state."""
    torch.manual_seed(seed)
    with where:
        segments, one = segments_of(shape.lengths), max(shape.lengths) == 1
        found: Problem = BUILD[shape.operator](shape, segments, one)
    for x in found.wanted:
        x.requires_grad_()
    return found


def segments_of(lengths: Sequence[int]) -> Segments:
    with torch.device("cpu"):
        return Segments.from_lengths(lengths)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def _rule(shape: Shape, segments: Segments, one: bool) -> Problem:
    (H, G, K, V), total, delta = shape.sizes, shape.total, shape.operator != "state_space"
    query, key, value = _normal(total, H, K), _normal(total, H, K), _normal(total, G, V)
    decay = (total, G, K) if shape.operator == "kimi_delta" else (total, G)
    log_decay = 0.1 * logsigmoid(torch.randn(decay) + 2)
    strength = 2 * torch.rand(total, G).bfloat16() if delta else 0.1 * torch.rand(total, G)
    state = [0.1 * torch.randn(segments.count, G, K, V)] if one else []
    wanted = [query, key, value, log_decay, strength]
    table, scale = RULE[shape.operator], None if delta else K**-0.5

    def call(backend: str) -> Sequence[Tensor]:
        return table.run(Recurrence.of(wanted, segments, state[0] if state else None, scale, delta), backend)

    return Problem(wanted, state, call, kept=1)


def _selective_scan(shape: Shape, segments: Segments, one: bool) -> Problem:
    (D, K), total = shape.sizes, shape.total
    wanted = [
        _normal(total, D),
        0.1 * torch.rand(total, D),
        -1 - torch.rand(D, K),
        _normal(total, K),
        _normal(total, K),
    ]
    state = [torch.randn(segments.count, D, K)] if one else []

    def call(backend: str) -> Sequence[Tensor]:
        scan = Scan(*wanted, segments.offsets, state[0] if state else None, segments.time or 0)
        return selective_scan.run(scan, backend)

    return Problem(wanted, state, call, kept=1)


def _short_convolution(shape: Shape, segments: Segments, one: bool) -> Problem:
    (D, W), total = shape.sizes, shape.total
    x, weight = _normal(total, D), _normal(D, W)
    state = [_normal(segments.count, W - 1, D)] if one else []

    def call(backend: str) -> Sequence[Tensor]:
        return short_convolution(x, weight, segments=segments, state=state[0] if state else None, backend=backend)

    return Problem([x, weight], state, call, kept=1)


def _rms_norm(shape: Shape, segments: Segments, one: bool) -> Problem:
    """A whole row after a sum, or heads with a gate."""
    x, other = (_normal(shape.total, *shape.sizes) for _ in range(2))
    weight, name = _normal(shape.sizes[-1]), "before" if len(shape.sizes) == 1 else "gate"

    def call(backend: str) -> Sequence[Tensor]:
        out, total = rms_norm(x, weight, 1e-5, **{name: other}, backend=backend)
        return (out, total) if name == "before" else (out,)

    return Problem([x, weight, other], [], call, plain="plain")


def _decay_gate(shape: Shape, segments: Segments, one: bool) -> Problem:
    D, heads = shape.sizes
    x, bias, rates = _normal(shape.total, D), torch.randn(D), torch.randn(heads)

    def call(backend: str) -> Sequence[Tensor]:
        return [decay_gate(x, bias, rates, keep_step=False, backend=backend)[0]]

    return Problem([x, bias, rates], [], call, plain="plain")


def _swiglu(shape: Shape, segments: Segments, one: bool) -> Problem:
    x = _normal(shape.total, 2 * shape.sizes[0])
    return Problem([x], [], lambda backend: [swiglu(x, backend=backend)], plain="plain")


def _cross_entropy(shape: Shape, segments: Segments, one: bool) -> Problem:
    """The head and the loss of a model, as training calls them; the gradients are formed with the loss."""
    (D, vocabulary), total = shape.sizes, shape.total
    hidden, weight = _normal(total, D), 0.02 * _normal(vocabulary, D)
    targets = torch.randint(vocabulary, (total,))

    def truth() -> Sequence[Tensor]:
        parts = zip(hidden.detach().split(1024), targets.split(1024), strict=True)
        return [sum(cross_entropy((h @ weight.detach().T).float(), t, reduction="sum") for h, t in parts) / total]

    def call(backend: str) -> Sequence[Tensor]:
        return [next_token_loss(hidden, weight, targets)]

    return Problem([hidden, weight], [targets], call, "auto", "", truth)


def _experts(shape: Shape, segments: Segments, one: bool) -> Problem:
    (D, count, top, inner), total = shape.sizes, shape.total
    chosen = torch.rand(total, count).topk(top).indices
    wanted = [_normal(total, D), torch.rand(total, top), 0.02 * _normal(count, 2 * inner, D)]
    wanted.append(0.02 * _normal(count, D, inner))
    x, weights, first, second = wanted

    def call(backend: str) -> Sequence[Tensor]:
        return [experts(x, chosen, weights, first, second, backend=backend)]

    return Problem(wanted, [chosen], call, plain="sorted")


def _attention(shape: Shape, segments: Segments, one: bool) -> Problem:
    H, J, dim = shape.sizes
    wanted = [_normal(shape.total, H, dim), _normal(shape.total, J, dim), _normal(shape.total, J, dim)]
    query, key, value = wanted
    if not one:

        def fresh(backend: str) -> Sequence[Tensor]:
            return [attention(query, key, value, segments=segments, backend=backend)[0]]

        return Problem(wanted, [], fresh, "chunked", "" if shape.total > 64 else "recurrent")
    count = segments.count
    past = min(PAST, 32 * count)  # a small run has a small past
    empty = AttentionState.empty(count, J, dim, dim, None, key.detach(), past + 256)
    seen = _normal(count * past, J, dim)
    held = [empty.append(seen, seen.flip(0), Segments(segments_of([past] * count).offsets, count * past, past))]

    def call(backend: str) -> Sequence[Tensor]:
        if held[0].room == 0:
            held[0] = AttentionState(held[0].keys, held[0].values, [past] * count, None)
        out, held[0] = attention(query, key, value, segments=segments, state=held[0], backend=backend)
        return [out]

    return Problem(wanted, [x[:, :past] for x in held[0].tensors()], call, "chunked", "")


BUILD: dict[str, Callable[[Shape, Segments, bool], Problem]] = {
    **dict.fromkeys(RULE, _rule),
    "selective_scan": _selective_scan,
    "short_convolution": _short_convolution,
    "rms_norm": _rms_norm,
    "decay_gate": _decay_gate,
    "swiglu": _swiglu,
    "cross_entropy": _cross_entropy,
    "experts": _experts,
    "attention": _attention,
}
