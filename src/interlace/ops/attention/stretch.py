"""Attention of a stretch of tokens to sequences that began on other workers, whose keys and values are gathered."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.attention.ragged import after_past, spans_back
from interlace.ops.core import across
from interlace.ops.core.custom_op import Signature, custom_op


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    first: int,
    before: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend with queries [n, H, K] of the tokens from place `first` on to keys of the whole axis."""
    found = []
    for a, b, low, own in _spans(offsets, first, before):
        keys = slice(low, own + b - a)
        found.append(after_past(query[a:b], key[keys], value[keys], scale, window))
    return torch.cat(found)


def _spans(offsets: Tensor, first: int, before: int) -> list[tuple[int, int, int, int]]:
    """Return (first query, end, the first key that they see, the key of the first query) of each sequence."""
    return [(a, b, first + a - (0 if a else before), first + a) for a, b in pairwise(offsets.tolist())]


def _back(d_out: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Return the gradients of query, key and value."""
    query, key, value, offsets, first, before, scale, window = inputs
    return spans_back(d_out, query, key, value, _spans(offsets, first, before), scale, window)


_compiled = custom_op(
    "stretch_attention",
    Signature(
        "Tensor query, Tensor key, Tensor value, Tensor offsets, SymInt first, SymInt before, float scale, "
        "SymInt? window",
        ("query", "key", "value"),
        outputs=1,
    ),
    lambda *inputs: _run(*inputs).contiguous(),
    _back,
    lambda query, key, value, *_: value.new_empty(*query.shape[:2], value.shape[2]),
)


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    """Attend with the queries of a stretch, [n, H, K] to [n, H, V], by keys and values of all workers."""
    place: across.Across = segments.across
    both = across.gather(torch.cat((key, value), dim=-1), place)
    keys, values = both.split((key.shape[2], value.shape[2]), dim=-1)
    run = _compiled if torch.compiler.is_compiling() else _run  # the borders are data: the loop over them is opaque
    first = place.place * query.shape[0]
    found: Tensor = run(query, keys, values, segments.offsets, first, place.before, scale, window)
    return found
