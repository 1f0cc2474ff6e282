"""The chunked form and the compiled kernels of a rule, as backends; each gets one `Recurrence`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import chunks, gpu, kernels
from interlace.ops.core.backends import ANY, Backend
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import DTYPES, address, floats
from interlace.ops.core.operands import Recurrence

Run = Callable[[Recurrence], tuple[Tensor, Tensor]]

INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor log_decay, Tensor strength, Tensor offsets, Tensor? state, "
    "float scale, SymInt time, bool normalise"
)
GRADIENTS = ("query", "key", "value", "log_decay", "strength", "state")


def shapes(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Return outputs [total, G, V] in value's dtype and final states [N, G, K, V], with nothing in them."""
    x = Recurrence(*inputs)
    final = x.value.new_empty(x.rows, x.value.shape[1], x.key.shape[2], x.value.shape[2], dtype=x.dtype)
    return torch.empty_like(x.value, memory_format=torch.contiguous_format), final


def define(name: str, rule: type[chunks.ChunkGrid], forward: Run | None = None) -> Callable[..., tuple[Tensor, Tensor]]:
    """Register a rule as `interlace::NAME`: (*Recurrence, not to be normalised) -> (out, final states).

    `forward` replaces the rule's own forward; the backward is always the rule's.
    """
    run = forward or (lambda x: chunks.forward(rule, x))

    def backward(d_out: Tensor, d_final: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
        return chunks.backward(rule, d_out, d_final, Recurrence(*inputs))

    return custom_op(name, Signature(INPUTS, GRADIENTS), lambda *inputs: run(Recurrence(*inputs)), backward, shapes)


def chunked(name: str, rule: type[chunks.ChunkGrid], step: Run) -> Run:
    """Return a rule's backend "chunked"; `step` serves one token per sequence, without gradients."""
    operator = define(name, rule)

    def run(x: Recurrence) -> tuple[Tensor, Tensor]:
        x = x.unit()
        if x.time == 1 and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return step(x)
        return operator(*x)

    return run


def native(name: str, rule: type[chunks.ChunkGrid]) -> Run:
    """Return a rule's backend "native": the kernels `NAME_forward` and `NAME_step`; the backward pass is by chunks.

    Tensors are float32 or bfloat16 on a CPU, arithmetic and states float32.
    """

    def forward(x: Recurrence) -> tuple[Tensor, Tensor]:
        tensors, sizes = prepare(x)
        out, final = shapes(*x)
        kernel = getattr(kernels.module(), f"{name}_forward")
        kernel([address(t) for t in tensors], sizes, x.scale, [address(out), address(final), kernels.NONE])
        return out, final

    operator = define(f"{name}_native", rule, forward)

    def run(x: Recurrence) -> tuple[Tensor, Tensor]:
        if kernels.wants_graph(*x.tensors):
            return operator(*x.unit())
        if one_token(x):
            assert x.state is not None
            memory = x.state if kernels.owned(x.state) else copied(x.state)
            return step(name, x, memory), memory
        return forward(x)

    return run


def one_token(x: Recurrence) -> bool:
    """Return whether a call takes one token of each sequence, from a state, without gradients."""
    return x.time == 1 and x.state is not None and not kernels.wants_graph(*x.tensors)


def copied(state: Tensor) -> Tensor:
    """Return a copy of a state, which the kernels change in place."""
    return state.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def step(name: str, x: Recurrence, memory: Tensor) -> Tensor:
    """Take one token of each of N sequences by the kernel.

    memory: float32 [N, G, K, V], contiguous, changed in place.
    """
    tensors, sizes = prepare(x, step=True)
    out = torch.empty_like(x.value, memory_format=torch.contiguous_format)
    getattr(kernels.module(), f"{name}_step")(
        [address(t) for t in tensors], sizes, x.scale, address(out), address(memory)
    )
    torch.autograd.graph.increment_version(memory)
    return out


def prepare(x: Recurrence, step: bool = False) -> tuple[list[Tensor | None], list[int]]:
    """Return the tensors as the kernels read them, and sizes, strides and dtypes; the tensors must outlive the call.

    For a step every token is a sequence, and the state is handed over apart.
    """
    query, key = x.query, x.key
    if query.dtype != key.dtype:
        query, key = floats(query), floats(key)
    query, key, value = kernels.rows(query), kernels.rows(key), kernels.rows(x.value)
    tensors = [query, key, value, floats(x.log_decay), floats(x.strength), None, None]
    if not step:
        assert x.offsets is not None
        tensors[5:] = [kernels.borders(x.offsets), None if x.state is None else floats(x.state)]
    count = value.shape[0] if step else x.rows
    sizes = [count, query.shape[1], value.shape[1], query.shape[2], value.shape[2]]
    sizes += [t.stride(0) for t in (query, key, value)]
    return tensors, [*sizes, DTYPES[query.dtype], DTYPES[value.dtype], x.normalise, torch.get_num_threads()]


def refuses(x: Recurrence) -> str | None:
    """Return why the kernels cannot serve a call, or None."""
    return kernels.refuses(x.query, x.key, x.value)


def triton(name: str, part: str = "") -> Backend:
    """Return a rule's row "triton", or that of a part of it, which may be given a state too.

    Calls of one token have a kernel, and so a check, of their own.
    """

    def refuses(x: Recurrence, *_: Tensor) -> str | None:
        K, V = x.query.shape[-1], x.value.shape[-1]
        if max(K, V) > gpu.LARGEST_HEAD:
            return f"the kernels take heads of at most {gpu.LARGEST_HEAD} channels, not {K} x {V}"
        return kernels.refuses(*x.tensors)

    def selects(x: Recurrence, *_: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
        return x.value.dtype, (x.query.shape[-1], x.value.shape[-1])

    def probed(x: Recurrence, *_: Tensor) -> str:
        return part or ("step" if one_token(x) else "")

    return gpu.backend(name, refuses, selects, part, probed=probed)


def backends(name: str, rule: type[chunks.ChunkGrid], step: Run, recurrent: Run) -> tuple[Backend, ...]:
    """Return the table of a rule: its kernels for a GPU and a CPU, its chunked form, its truth."""
    operator = chunked(name, rule, step)
    return (
        triton(name),
        kernels.backend(lambda: native(name, rule), refuses),
        Backend("chunked", lambda: operator, slow_on=(ANY,)),
        Backend("recurrent", lambda: recurrent, slow_on=(ANY,)),
    )
