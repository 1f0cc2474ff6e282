"""The gated delta rule by the compiled kernels: forward, backward and one step, as torch custom ops.

Float32 arithmetic throughout; inputs in float32 or bfloat16. Of a forward that will be differentiated the inputs and
one state every SNAPSHOT_TOKENS tokens are kept; backward computes the rest again from there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import kernels as native
from interlace.ops.core.kernels import DTYPES, address, floats, rows

SNAPSHOT_TOKENS = 256  # a test holds it to the kernels' own

# Written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor log_decay, Tensor beta, Tensor offsets, Tensor? state, "
    "float scale, bool normalise"
)
_GRADIENTS = ", ".join(["Tensor"] * 6)


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    offsets: Tensor | None,
    state: Tensor | None,
    normalise: bool,
) -> tuple[list[Tensor | None], list[int]]:
    """The tensors as the kernels read them, and sizes, strides and dtypes; the tensors must outlive the call.

    Without offsets every token is a segment.
    """
    if query.dtype != key.dtype:
        query, key = floats(query), floats(key)
    query, key, value = rows(query), rows(key), rows(value)
    tensors = [
        query,
        key,
        value,
        floats(log_decay),
        floats(beta),
        None if offsets is None else native.borders(offsets),
        None if state is None else floats(state),
    ]
    count = value.shape[0] if offsets is None else offsets.shape[0] - 1
    sizes = [count, query.shape[1], value.shape[1], query.shape[2], value.shape[2]]
    sizes += [x.stride(0) for x in (query, key, value)]
    return tensors, [*sizes, DTYPES[query.dtype], DTYPES[value.dtype], normalise, torch.get_num_threads()]


@torch.library.custom_op(
    "interlace::gated_delta_native",
    mutates_args=(),
    schema=f"({_INPUTS}, bool differentiable) -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    offsets: Tensor,
    state: Tensor | None,
    scale: float,
    normalise: bool,
    differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _empty(query, key, value, log_decay, beta, offsets, state, scale, normalise, differentiable)
    tensors, sizes = prepare(query, key, value, log_decay, beta, offsets, state, normalise)
    to = [address(x) if x.numel() else native.NONE for x in outputs]
    native.kernels().gated_delta_forward([address(x) for x in tensors], sizes, scale, to)
    return outputs


@_forward.register_fake
def _empty(query, key, value, log_decay, beta, offsets, state, scale, normalise, differentiable):  # type: ignore[no-untyped-def]
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    shape = (value.shape[1], key.shape[2], value.shape[2])
    final = value.new_empty(offsets.shape[0] - 1, *shape, dtype=torch.float32)
    kept = value.shape[0] // SNAPSHOT_TOKENS if differentiable else 0
    return out, final, value.new_empty(kept, *shape, dtype=torch.float32)


@torch.library.custom_op(
    "interlace::gated_delta_native_backward",
    mutates_args=(),
    schema=f"(Tensor d_out, Tensor? d_final, Tensor snapshots, {_INPUTS}) -> ({_GRADIENTS})",
    device_types="cpu",
)
def _backward(
    d_out: Tensor,
    d_final: Tensor | None,
    snapshots: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    offsets: Tensor,
    state: Tensor | None,
    scale: float,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors, sizes = prepare(query, key, value, log_decay, beta, offsets, state, normalise)
    d_out = d_out.to(value.dtype).contiguous()
    d_final = None if d_final is None else floats(d_final)
    qk = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors[:2]]  # type: ignore[arg-type]
    d_value = torch.empty_like(value, memory_format=torch.contiguous_format)
    gates = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors[3:5]]  # type: ignore[arg-type]
    d_state = query.new_empty(0) if state is None else torch.empty_like(tensors[6])  # type: ignore[arg-type]
    given = [address(d_out), address(d_final), address(snapshots)]
    to = [address(x) for x in (*qk, d_value, *gates)] + [native.NONE if state is None else address(d_state)]
    native.kernels().gated_delta_backward([address(x) for x in tensors], sizes, scale, given, to)
    if state is not None:
        d_state = d_state.to(state.dtype)
    d_query, d_key = (d.to(x.dtype) for d, x in zip(qk, (query, key), strict=True))
    return d_query, d_key, d_value, gates[0].to(log_decay.dtype), gates[1].to(beta.dtype), d_state


@_backward.register_fake
def _empty_gradients(d_out, d_final, snapshots, query, key, value, log_decay, beta, offsets, state, scale, normalise):  # type: ignore[no-untyped-def]
    like = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value, log_decay, beta)]
    return *like, query.new_empty(0) if state is None else torch.empty_like(
        state, memory_format=torch.contiguous_format
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.normalise, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, d_out: Tensor | None, d_final: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    snapshots, *inputs, offsets, state = ctx.saved_tensors
    d_out = torch.zeros_like(inputs[2]) if d_out is None else d_out
    *grads, d_state = _backward(d_out, d_final, snapshots, *inputs, offsets, state, ctx.scale, ctx.normalise)
    return *grads, None, None if state is None else d_state, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    segments: Segments,
    state: Tensor | None,
    scale: float,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    """`gated_delta` on CPU tensors of float32 or bfloat16."""
    inputs = (query, key, value, log_decay, beta)
    if segments.time == 1 and state is not None and not native.wants_graph(*inputs, state):
        memory = state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return step(*inputs, memory, scale, normalise), memory
    differentiable = native.wants_gradients(*inputs, state)
    return _forward(*inputs, segments.offsets, state, scale, normalise, differentiable)[:2]


def step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    memory: Tensor,
    scale: float,
    normalise: bool,
) -> Tensor:
    """One token for each of N sequences; memory float32 [N, G, K, V], contiguous, is changed in place. No autograd."""
    tensors, sizes = prepare(query, key, value, log_decay, beta, None, None, normalise)
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    native.kernels().gated_delta_step([address(x) for x in tensors], sizes, scale, address(out), address(memory))
    torch.autograd.graph.increment_version(memory)
    return out
