"""A chunked rule as torch custom ops: one node for torch.compile, its own backward, shapes on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import chunks

# Written out, since the shape checks of the tests wrap these functions and hide their annotations from torch.
_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor log_decay, Tensor beta, Tensor offsets, Tensor? state, "
    "float scale, SymInt time"
)
_GRADIENTS = ", ".join(["Tensor"] * 6)


def define(
    name: str, rule: type[chunks.Grid], forward: Callable[..., tuple[Tensor, Tensor]] | None = None
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Register `interlace::NAME` and its backward; returns (query, ..., time) -> (out, final states).

    `forward` takes the place of the rule's own; the way back is always the rule's.
    """

    @torch.library.custom_op(f"interlace::{name}", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
    def operator(*inputs: Any) -> tuple[Tensor, Tensor]:
        return chunks.forward(rule, *inputs) if forward is None else forward(*inputs)

    @operator.register_fake
    def _(query, key, value, log_decay, beta, offsets, state, scale, time):  # type: ignore[no-untyped-def]
        dtype = torch.promote_types(value.dtype, torch.float32)
        final = value.new_empty(offsets.shape[0] - 1, value.shape[1], key.shape[2], value.shape[2], dtype=dtype)
        return torch.empty_like(value, memory_format=torch.contiguous_format), final

    @torch.library.custom_op(
        f"interlace::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor d_out, Tensor? d_final, {_INPUTS}) -> ({_GRADIENTS})",
    )
    def backward(*inputs: Any) -> tuple[Tensor, ...]:
        return chunks.backward(rule, *inputs)

    @backward.register_fake
    def _(d_out, d_final, *inputs):  # type: ignore[no-untyped-def]
        query, state = inputs[0], inputs[6]
        like = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:5]]
        return *like, query.new_empty(0) if state is None else torch.empty_like(state)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.scale, ctx.time = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    def autograd(ctx: Any, d_out: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, offsets, state = ctx.saved_tensors
        d_out = torch.zeros_like(inputs[2]) if d_out is None else d_out
        *grads, d_state = backward(d_out.contiguous(), d_final, *inputs, offsets, state, ctx.scale, ctx.time)
        return *grads, None, None if state is None else d_state, None, None

    operator.register_autograd(autograd, setup_context=setup_context)
    return operator
