"""The gated delta rule by the compiled kernels: forward and backward as a custom operator, and one step.

Float32 arithmetic throughout; inputs in float32 or bfloat16. A forward that will be differentiated keeps its inputs and
one state every SNAPSHOT_TOKENS tokens; backward computes the rest again from these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import kernels, rules
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import address, floats
from interlace.ops.core.operands import Recurrence

SNAPSHOT_TOKENS = 256  # a test holds it to the kernels' own


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _shapes(*inputs)
    x = Recurrence(*inputs[:-1])
    tensors, sizes = rules.prepare(x)
    to = [address(t) if t.numel() else kernels.NONE for t in outputs]
    kernels.module().gated_delta_forward([address(t) for t in tensors], sizes, x.scale, to)
    return outputs


def _shapes(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *operands, differentiable = inputs
    out, final = rules.shapes(*operands)
    kept = out.shape[0] // SNAPSHOT_TOKENS if differentiable else 0
    return out, final, out.new_empty(kept, *final.shape[1:], dtype=torch.float32)


def _backward(d_out: Tensor, d_final: Tensor | None, snapshots: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    x = Recurrence(*inputs[:-1])
    tensors, sizes = rules.prepare(x)
    d_out = d_out.to(x.value.dtype).contiguous()
    d_final = None if d_final is None else floats(d_final)
    read = [tensors[0], tensors[1], x.value, tensors[3], tensors[4]]
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in read if t is not None]
    d_state = x.query.new_empty(0 if x.state is None else x.state.shape, dtype=torch.float32)
    given = [address(d_out), address(d_final), address(snapshots)]
    to = [*map(address, grads), kernels.NONE if x.state is None else address(d_state)]
    kernels.module().gated_delta_backward([address(t) for t in tensors], sizes, x.scale, given, to)
    operands = (x.query, x.key, x.value, x.log_decay, x.strength)
    if x.state is not None:
        d_state = d_state.to(x.state.dtype)
    return *(d.to(t.dtype) for d, t in zip(grads, operands, strict=True)), d_state


_operator = custom_op(
    "gated_delta_native",
    Signature(f"{rules.INPUTS}, bool differentiable", rules.GRADIENTS, outputs=3, hidden=1, device="cpu"),
    _forward,
    _backward,
    _shapes,
)


def run(x: Recurrence) -> tuple[Tensor, Tensor]:
    """`gated_delta` on CPU tensors of float32 or bfloat16."""
    if x.time == 1 and x.state is not None and not kernels.wants_graph(*x.tensors):
        memory = rules.copied(x.state)
        return step(x, memory), memory
    out, final, _ = _operator(*x, kernels.wants_gradients(*x.tensors))
    return out, final


def step(x: Recurrence, memory: Tensor) -> Tensor:
    """Take one token; see `rules.step`."""
    return rules.step("gated_delta", x, memory)
