"""Attention by the compiled kernels: whole sequences, forward and backward, and one token per sequence.

Float32 arithmetic, block by block; backward keeps the output and one float per token and head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import kernels as native
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.kernels import DTYPES, address, rows

# Written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor offsets, float scale, SymInt window"


def prepare(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, window: int) -> tuple[list[Tensor], list[int]]:
    """The tensors as the kernels read them, and dtype, strides and sizes; the tensors must outlive the call."""
    query, key, value = rows(query), rows(key), rows(value)
    (_, H, K), (_, J, V) = query.shape, value.shape
    strides = [x.stride(0) for x in (query, key, value)]
    sizes = [DTYPES[query.dtype], *strides, offsets.shape[0] - 1, H, J, K, V, window, torch.get_num_threads()]
    return [query, key, value, native.borders(offsets)], sizes


@torch.library.custom_op(
    "interlace::attention_native", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)", device_types="cpu"
)
def _forward(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    out, weight = _empty(query, key, value, offsets, scale, window)
    tensors, sizes = prepare(query, key, value, offsets, window)
    native.kernels().attention_forward([address(x) for x in (*tensors, out, weight)], sizes, scale)
    return out, weight


@_forward.register_fake
def _empty(query, key, value, offsets, scale, window):  # type: ignore[no-untyped-def]
    out = value.new_empty(*query.shape[:2], value.shape[2])
    return out, query.new_empty(query.shape[:2], dtype=torch.float32)


@torch.library.custom_op(
    "interlace::attention_native_backward",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor out, Tensor weight, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def _backward(
    d_out: Tensor,
    out: Tensor,
    weight: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _empty_gradients(d_out, out, weight, query, key, value, offsets, scale, window)
    tensors, sizes = prepare(query, key, value, offsets, window)
    d_out = d_out.to(query.dtype).contiguous()
    given = [address(x) for x in (*tensors, out, weight)]
    native.kernels().attention_backward(given, sizes, scale, address(d_out), [address(x) for x in grads])
    return grads


@_backward.register_fake
def _empty_gradients(d_out, out, weight, query, key, value, offsets, scale, window):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, d_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return (None,) * 6
    return *_backward(d_out, *ctx.saved_tensors, ctx.scale, ctx.window), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def refuses(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    """Why the kernels cannot serve these tensors, or None."""
    if not query.dtype == key.dtype == value.dtype:
        return "query, key and value differ in dtype"
    return native.refuses(query)


def fresh(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    """Sequences without a past: [total, H, K] to [total, H, V]."""
    return _forward(query, key, value, segments.offsets, scale, window or 0)[0]


def after_past(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """One sequence's newest tokens over all it has seen: query [T, H, K], key [S, J, K], value [S, J, V] to [T, H, V].

    The queries are the last T of S places. No autograd.
    """
    out = query.new_empty(*query.shape[:2], value.shape[2])
    offsets = torch.tensor([0, query.shape[0]], dtype=torch.int32, device=query.device)
    tensors, sizes = prepare(query, key, value, offsets, window or 0)
    if query.device.type == "meta":
        return out
    addresses = [address(x) for x in (*tensors, out)]
    native.kernels().attention_forward([*addresses, native.NONE], [*sizes, key.shape[0] - query.shape[0]], scale)
    return out


def serves_past(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `after_past` can take these tensors."""
    here = native.available() and query.device.type in native.DEVICES
    plain = here and not native.wants_gradients(query, key, value) and not torch.compiler.is_compiling()
    return plain and refuses(query, key, value) is None


def serves(query: Tensor, key: Tensor, value: Tensor, segments: Segments, state: AttentionState) -> bool:
    """Whether `step` can take this call: one token per sequence, on a CPU, of one dtype it knows, without gradients."""
    if segments.time != 1 or not native.available() or native.wants_graph(query, key, value, state.keys):
        return False
    same = query.dtype == key.dtype == value.dtype == state.keys.dtype == state.values.dtype
    same = same and state.keys.is_contiguous() and state.values.is_contiguous() and state.keys.device.type == "cpu"
    return same and query.dtype in DTYPES and query.device.type == "cpu"


def step(
    query: Tensor, key: Tensor, value: Tensor, state: AttentionState, scale: float
) -> tuple[Tensor, AttentionState]:
    """query [N, H, K], key [N, J, K], value [N, J, V] to ([N, H, V], the state after), which uses up `state`."""
    places = native.counter(torch.tensor(state.positions, device="cpu"))
    after = state.stepped()
    query, key, value = rows(query), rows(key), rows(value)
    (N, H, K), (_, J, V) = query.shape, value.shape
    out = query.new_empty(N, H, V)
    sizes = [DTYPES[query.dtype], query.stride(0), key.stride(0), value.stride(0), N, H, J, K, V]
    sizes += [after.keys.shape[1], state.window or 0, torch.get_num_threads()]
    tensors = (query, key, value, after.keys, after.values, places)
    native.kernels().attention_step([address(x) for x in tensors], sizes, scale, address(out))
    return out, after
