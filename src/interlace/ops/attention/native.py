"""Attention by the compiled kernels: whole sequences, forward and backward, and one token per sequence.

Float32 arithmetic, block by block; backward keeps the output and one float per token and head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import kernels
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import DTYPES, address, rows


def prepare(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, window: int) -> tuple[list[Tensor], list[int]]:
    """Return the tensors as the kernels read them, and dtype, strides and sizes; the tensors must outlive the call."""
    query, key, value = rows(query), rows(key), rows(value)
    (_, H, K), (_, J, V) = query.shape, value.shape
    strides = [x.stride(0) for x in (query, key, value)]
    sizes = [DTYPES[query.dtype], *strides, offsets.shape[0] - 1, H, J, K, V, window, torch.get_num_threads()]
    return [query, key, value, kernels.borders(offsets)], sizes


def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    query, key, value, offsets, scale, window = inputs
    out, weight = _shapes(*inputs)
    tensors, sizes = prepare(query, key, value, offsets, window)
    kernels.module().attention_forward([address(x) for x in (*tensors, out, weight)], sizes, scale)
    return out, weight


def _shapes(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    out = value.new_empty(*query.shape[:2], value.shape[2])
    return out, query.new_empty(query.shape[:2], dtype=torch.float32)


def _backward(d_out: Tensor, out: Tensor, weight: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    query, key, value, offsets, scale, window = inputs
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    tensors, sizes = prepare(query, key, value, offsets, window)
    d_out = d_out.to(query.dtype).contiguous()
    given = [address(x) for x in (*tensors, out, weight)]
    kernels.module().attention_backward(given, sizes, scale, address(d_out), [address(x) for x in grads])
    return grads


_operator = custom_op(
    "attention_native",
    Signature(
        "Tensor query, Tensor key, Tensor value, Tensor offsets, float scale, SymInt window",
        ("query", "key", "value"),
        hidden=1,
        saved=(0, 1),
        device="cpu",
    ),
    _forward,
    _backward,
    _shapes,
)


def refuses(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Why the kernels cannot serve these tensors, or None."""
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value differ in dtype"
    return kernels.refuses(query)


def fresh(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    """Attend in sequences without a past: [total, H, K] to [total, H, V]."""
    out: Tensor = _operator(query, key, value, segments.offsets, scale, window or 0)[0]
    return out


def after_past(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend from one sequence's newest tokens to all it has seen; no autograd.

    query [T, H, K], key [S, J, K], value [S, J, V] to [T, H, V]. The queries are the last T of S places.
    """
    out = query.new_empty(*query.shape[:2], value.shape[2])
    offsets = torch.tensor([0, query.shape[0]], dtype=torch.int32, device=query.device)
    tensors, sizes = prepare(query, key, value, offsets, window or 0)
    if query.device.type == "meta":
        return out
    addresses = [address(x) for x in (*tensors, out)]
    kernels.module().attention_forward([*addresses, kernels.NONE], [*sizes, key.shape[0] - query.shape[0]], scale)
    return out


def serves_past(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether `after_past` can take these tensors."""
    here = kernels.available() and query.device.type in kernels.DEVICES
    plain = here and not kernels.wants_gradients(query, key, value) and not torch.compiler.is_compiling()
    return plain and refuses(query, key, value) is None


def serves(query: Tensor, key: Tensor, value: Tensor, segments: Segments, state: AttentionState) -> bool:
    """Return whether `step` can take a call: one token per sequence, on a CPU, one known dtype, no gradients."""
    if segments.time != 1 or not kernels.available() or kernels.wants_graph(query, key, value, state.keys):
        return False
    same = query.dtype == key.dtype == value.dtype == state.keys.dtype == state.values.dtype
    same = same and state.keys.is_contiguous() and state.values.is_contiguous() and state.keys.device.type == "cpu"
    return same and query.dtype in DTYPES and query.device.type == "cpu"


def step(
    query: Tensor, key: Tensor, value: Tensor, state: AttentionState, scale: float
) -> tuple[Tensor, AttentionState]:
    """Map query [N, H, K], key [N, J, K], value [N, J, V] to ([N, H, V], the state after), which uses up `state`."""
    places = torch.tensor(state.positions, device="cpu")
    after = state.stepped()
    return look_back(query, key, value, after.caches(), places, scale, state.window), after


def look_back(
    query: Tensor,
    key: Tensor,
    value: Tensor | int,
    caches: Tensor,
    places: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Keep one token of each of N sequences in its cache, and attend from it to what is visible there; [N, H, V].

    Args:
        query: [N, H, K].
        key: [N, J, K].
        value: [N, J, V]; or V, where values are the first V elements of the keys.
        caches: int64 [N, 3]: addresses of keys [capacity, J, K] and values [capacity, J, V], and the capacity.
        places: int64 [N], tokens kept before this one.
        window: as of `attention`; such a cache is a ring.

    Raises:
        IndexError: a cache has no space.
    """
    query, key, own = rows(query), rows(key), None if isinstance(value, int) else rows(value)
    (N, H, K), J = query.shape, key.shape[1]
    V = value if isinstance(value, int) else value.shape[2]
    out = query.new_empty(N, H, V)
    sizes = [DTYPES[query.dtype], query.stride(0), key.stride(0), 0 if own is None else own.stride(0), N, H, J, K, V]
    sizes += [window or 0, torch.get_num_threads()]
    kernels.module().attention_step([address(x) for x in (query, key, own, caches, places)], sizes, scale, address(out))
    return out
