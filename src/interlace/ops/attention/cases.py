"""Nasty inputs for `attention`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.attention import dispatch
from interlace.ops.attention.step import Step
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.cases import Case, Operator


def attention_case(
    lengths: list[int],
    label: str,
    window: int | None,
    seed: int = 0,
    shape: tuple[int, int, int, int] = (4, 2, 12, 20),
) -> Case:
    """Make a case: grouped heads, K != V, with and without a window."""
    draw = torch.Generator().manual_seed(seed)
    T, (H, J, K, V) = sum(lengths), shape
    shapes = {"query": (T, H, K), "key": (T, J, K), "value": (T, J, V)}
    tensors = {n: torch.randn(*s, generator=draw, dtype=torch.float64) for n, s in shapes.items()}
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [dispatch.attention(**x, segments=segments, window=window, backend=backend)[0]]  # type: ignore[arg-type]

    return Case("attention", label, tensors, call, options={} if window is None else {"window": window})


def fresh_probe(key_dim: int, value_dim: int, group: int) -> Case:
    """Make the case that torch's kernel for ragged sequences is checked with: all before, and a window."""
    case = attention_case([1, 150, 70], "probe", None, shape=(2 * group, 2, key_dim, value_dim))
    segments = Segments.from_lengths([1, 150, 70])

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        return [dispatch.attention(**x, segments=segments, window=w, backend=backend)[0] for w in (None, 40)]  # type: ignore[arg-type]

    return replace(case, call=call)


def probe(key_dim: int, value_dim: int, group: int) -> Case:
    """Make the case that the kernels of a decoded token are checked with: the last token of each sequence is a step.

    One sequence has more than one stretch; with the window, one ring has turned.
    """
    segments = Segments.from_lengths([2, 600, 40])
    case = attention_case(segments.lengths, "probe", None, shape=(2 * group, 2, key_dim, value_dim))

    def step(backend: str, x: dict[str, Tensor], window: int | None) -> Tensor:
        last = segments.last()
        if backend == "recurrent":
            return dispatch.attention(**x, segments=segments, window=window, backend=backend)[0][last]  # type: ignore[arg-type]
        before = torch.ones(segments.total, dtype=torch.bool)
        before[last] = False
        past = Segments.from_lengths([n - 1 for n in segments.lengths])
        key, value = x["key"], x["value"]
        state = AttentionState.empty(segments.count, 2, key_dim, value_dim, window, key, 700)
        state = state.append(key[before.to(key.device)], value[before.to(key.device)], past)
        places = torch.tensor(state.positions, device=key.device)
        rows = [x[name][last.to(key.device)] for name in ("query", "key", "value")]
        return dispatch.step(Step(rows[0], rows[1], rows[2], state.on_device(places), key_dim**-0.5), backend)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [step(backend, x, window) for window in (None, 300)]

    return replace(case, call=call, differentiable=False)


OPERATOR = Operator(
    "attention", dispatch, lambda n, label, windowed: attention_case(n, label, 5 if windowed else None), mixes=True
)
