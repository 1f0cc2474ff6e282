"""Attention of one token per sequence by the compiled kernel, in place on the kept keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops import native
from interlace.ops.attention.state import AttentionState
from interlace.ops.native import DTYPES, address, rows


def serves(query: Tensor, key: Tensor, value: Tensor, segments: Segments, state: AttentionState) -> bool:
    """Whether `step` can take this call: one token per sequence, on a CPU, of one dtype it knows, without gradients."""
    if segments.time != 1 or not native.available() or native.wants_graph(query, key, value, state.keys):
        return False
    same = query.dtype == key.dtype == value.dtype == state.keys.dtype
    return same and query.dtype in DTYPES and query.device.type == "cpu"


def step(
    query: Tensor, key: Tensor, value: Tensor, state: AttentionState, scale: float
) -> tuple[Tensor, AttentionState]:
    """query [N, H, K], key [N, J, K], value [N, J, V] to ([N, H, V], the state after), which uses up `state`."""
    places = native.counter(torch.tensor(state.positions))
    after = state.stepped()
    query, key, value = rows(query), rows(key), rows(value)
    (N, H, K), (_, J, V) = query.shape, value.shape
    out = query.new_empty(N, H, V)
    sizes = [DTYPES[query.dtype], query.stride(0), key.stride(0), value.stride(0), N, H, J, K, V]
    sizes += [after.keys.shape[1], state.window or 0, torch.get_num_threads()]
    tensors = (query, key, value, after.keys, after.values, places)
    native.kernels().attention_step([address(x) for x in tensors], sizes, scale, address(out))
    return out, after
