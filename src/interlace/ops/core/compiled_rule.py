"""The compiled forward pass and step of a chunked rule; where gradients are wanted, the chunked form goes back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core import chunks
from interlace.ops.core import kernels as native
from interlace.ops.core.chunked_operator import define
from interlace.ops.core.kernels import address
from interlace.ops.core.normalise import normalised
from interlace.ops.gated_delta.native import prepare


def compiled(name: str, rule: type[chunks.Grid]) -> Callable[..., tuple[Tensor, Tensor]]:
    """What `NAME`'s backend "native" runs: the kernels `NAME_forward` and `NAME_step` on CPU tensors.

    Tensors are float32 or bfloat16, arithmetic and states float32.
    """

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        strength: Tensor,
        offsets: Tensor,
        state: Tensor | None,
        scale: float,
        time: int,
        normalise: bool = False,
    ) -> tuple[Tensor, Tensor]:
        tensors, sizes = prepare(query, key, value, log_decay, strength, offsets, state, normalise)
        out = torch.empty_like(value, memory_format=torch.contiguous_format)
        shape = (offsets.shape[0] - 1, value.shape[1], key.shape[2], value.shape[2])
        final = value.new_empty(shape, dtype=torch.float32)
        kernel = getattr(native.kernels(), f"{name}_forward")
        kernel([address(x) for x in tensors], sizes, scale, [address(out), address(final), native.NONE])
        return out, final

    def step(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        strength: Tensor,
        state: Tensor,
        scale: float,
        normalise: bool,
    ) -> tuple[Tensor, Tensor]:
        memory = state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        tensors, sizes = prepare(query, key, value, log_decay, strength, None, None, normalise)
        out = torch.empty_like(value, memory_format=torch.contiguous_format)
        kernel = getattr(native.kernels(), f"{name}_step")
        kernel([address(x) for x in tensors], sizes, scale, address(out), address(memory))
        return out, memory

    operator = define(f"{name}_native", rule, forward)

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        strength: Tensor,
        segments: Segments,
        state: Tensor | None,
        scale: float,
        normalise: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if native.wants_graph(query, key, value, log_decay, strength, state):
            if normalise:
                query, key = normalised(query), normalised(key)
            offsets, time = segments.offsets, segments.time or 0
            return operator(query, key, value, log_decay, strength, offsets, state, scale, time)
        if segments.time == 1 and state is not None:
            return step(query, key, value, log_decay, strength, state, scale, normalise)
        return forward(query, key, value, log_decay, strength, segments.offsets, state, scale, 0, normalise)

    return run
