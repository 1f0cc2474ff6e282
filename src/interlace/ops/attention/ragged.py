"""Attention by torch's fused kernel, one call for equal sequences and one per sequence otherwise; nothing is padded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from interlace.base.segments import Segments
from interlace.ops.core.attention_state import AttentionState

BLOCK = 1024  # queries that share one mask, where a mask is needed


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Queries [B, H, T, K] are the last T of S keys [B, J, S, K]; returns [B, H, T, V].

    A mask is built only for a window, or for queries that come after a past, and then for a block of queries
    and the keys that block can see.
    """
    T, S = q.shape[2], k.shape[2]
    gqa = q.shape[1] != k.shape[1]
    if S == T and (window is None or window >= T):
        return scaled_dot_product_attention(q, k, v, is_causal=T > 1, scale=scale, enable_gqa=gqa)
    if T == 1:
        k, v = (k, v) if window is None else (k[:, :, -window:], v[:, :, -window:])
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # a group's queries see the same keys
        return scaled_dot_product_attention(grouped, k, v, scale=scale).reshape(*q.shape[:2], 1, -1)
    outputs = []
    size = min(BLOCK, window or BLOCK)
    for start in range(0, T, size):
        stop = min(start + size, T)
        first, last = (0 if window is None else max(0, start + S - T - window + 1)), stop + S - T
        places = torch.arange(start, stop, device=q.device)[:, None] + (S - T)
        keys = torch.arange(first, last, device=q.device)
        mask = keys <= places if window is None else (keys <= places) & (keys > places - window)
        part = (q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last])
        outputs.append(scaled_dot_product_attention(*part, attn_mask=mask, scale=scale, enable_gqa=gqa))
    return torch.cat(outputs, dim=2)


def heads_first(x: Tensor, rows: int) -> Tensor:
    """Map [rows x T, heads, dim] to [rows, heads, T, dim]."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2)


def fresh(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, time: int, scale: float, window: int | None) -> Tensor:
    """Attend in sequences without a past: [total, H, K] to [total, H, V]."""
    if time:
        lanes = [heads_first(x, q.shape[0] // time) for x in (q, k, v)]
        out = causal(lanes[0], lanes[1], lanes[2], scale, window)
        return out.transpose(1, 2).flatten(0, 1)
    bounds = offsets.tolist()
    spans = itertools.pairwise(bounds)
    outputs = []
    for a, b in spans:
        one = [heads_first(x[a:b], 1) for x in (q, k, v)]
        outputs.append(causal(one[0], one[1], one[2], scale, window).squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def fresh_back(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v through `fresh` on ragged sequences."""
    spans = [(a, b, a, a) for a, b in itertools.pairwise(offsets.tolist())]
    return spans_back(d_out, q, k, v, spans, scale, window)


def spans_back(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Sequence[tuple[int, int, int, int]],
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v through causal attention, written out for where autograd cannot go.

    spans: (first query, end, the first key that they see, the key of the first query) of each sequence.

    A block of queries at a time, with P the softmax: dV = P^T dO, dS = P (dO V^T - rowsum(P dO V^T)), dQ = dS K,
    dK = dS^T Q. Letters: t queries, s keys, j key heads, r query heads of each.
    """
    grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    for a, b, low, own in spans:
        shift = own - a
        for start in range(a, b, BLOCK):
            stop = min(start + BLOCK, b)
            first, last = low if window is None else max(low, start + shift - window + 1), stop + shift
            qs, dos = (x[start:stop].unflatten(1, (k.shape[1], -1)) for x in (q, d_out))
            ks, vs = k[first:last], v[first:last]
            places = torch.arange(start, stop, device=q.device)[:, None] + shift
            keys = torch.arange(first, last, device=q.device)
            hidden = keys > places if window is None else (keys > places) | (keys <= places - window)
            scores = torch.einsum("tjrk,sjk->jrts", qs, ks) * scale
            P = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
            dP = torch.einsum("tjrv,sjv->jrts", dos, vs)
            dS = P * (dP - (P * dP).sum(-1, keepdim=True)) * scale
            grads[0][start:stop] = torch.einsum("jrts,sjk->tjrk", dS, ks).flatten(1, 2)
            grads[1][first:last] += torch.einsum("jrts,tjrk->sjk", dS, qs)
            grads[2][first:last] += torch.einsum("jrts,tjrv->sjv", P, dos)
    return grads[0], grads[1], grads[2]


def after_past(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend from one sequence's newest tokens to all it has seen; the queries are the last T of S places.

    query [T, H, K], key [S, J, K], value [S, J, V] to [T, H, V].
    """
    one = [heads_first(x, 1) for x in (query, key, value)]
    return causal(one[0], one[1], one[2], scale, window).squeeze(0).transpose(0, 1)


def cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    state: AttentionState,
    scale: float,
    one: Callable[[Tensor, Tensor, Tensor, float, int | None], Tensor] = after_past,
) -> tuple[Tensor, AttentionState]:
    """Attend in sequences that start from `state`, which is used up: [total, H, K] to ([total, H, V], new state).

    `one` attends for one sequence, as `after_past` does.
    """
    spans, window = segments.spans(), state.window
    joined = {}
    for row, (a, b) in enumerate(spans):
        if window is not None and b - a > 1:  # the ring will overwrite what these queries still see
            joined[row] = [torch.cat((past, x[a:b])) for past, x in zip(state.past(row), (k, v), strict=True)]
    state = state.append(k, v, segments)
    if segments.time == 1 and len(set(state.positions)) == 1:
        keys, values = (x[:, : state.held(0)].transpose(1, 2) for x in (state.keys, state.values))
        return causal(heads_first(q, len(spans)), keys, values, scale, None).squeeze(2), state
    outputs = []
    for row, (a, b) in enumerate(spans):
        held = slice(0, state.held(row))  # a ring needs no order here: a single query sees all that it holds
        keys, values = joined.get(row) or (state.keys[row, held], state.values[row, held])
        outputs.append(one(q[a:b], keys, values, scale, window if row in joined else None))
    return torch.cat(outputs), state
