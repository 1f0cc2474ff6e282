"""The selective scan for a block of channels at a time, all chunks of tokens side by side; its own backward.

A chunk's tokens are walked in turn, but every chunk at once, each from a state of zero. Then the chunks' last states
are carried from one to the next, and what each chunk began with is added to its tokens, decayed. At a segment's first
token the decay is 0, so it forgets what was before, and the segment's own state is added to what it writes. README.md
beside this file has the gradients, which are the same scan in reverse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.selective_scan.operands import GRADIENTS, INPUTS, Scan, shapes

CHUNK = 64  # tokens walked in turn
BLOCK_ELEMENTS = 1 << 22  # tokens x channels x state that exist at a time


def scan(decay: Tensor, write: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + write_t from h = 0, both [T, ...]; returns h, in the memory of `write`."""
    T = decay.shape[0]
    whole = T - T % CHUNK
    carried = None
    for part in (slice(0, whole), slice(whole, T)):
        if part.stop == part.start:
            continue
        C = CHUNK if part.start == 0 and whole else part.stop - part.start
        a, h = (x[part].unflatten(0, (-1, C)) for x in (decay, write))
        reach = a.clone()  # the decay from the chunk's start to each token
        for j in range(1, C):
            h[:, j].addcmul_(a[:, j], h[:, j - 1])
            reach[:, j] *= reach[:, j - 1]
        for chunk in range(h.shape[0]):
            if carried is not None:
                h[chunk].addcmul_(reach[chunk], carried)
            carried = h[chunk, -1]
    return write


def blocks(total: int, channels: int, size: int) -> list[slice]:
    """Return the channels to work on at a time."""
    width = max(1, BLOCK_ELEMENTS // (total * size))
    return [slice(d, min(d + width, channels)) for d in range(0, channels, width)]


def states(
    x: Tensor, step: Tensor, A: Tensor, B: Tensor, starts: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (decay exp(step A), decay with 0 where a segment starts, h), all [T, d, K], of a block of channels."""
    decay = torch.exp(step.unsqueeze(-1) * A)
    write = (step * x).unsqueeze(-1) * B.unsqueeze(1)
    if state is not None:
        write[starts] += decay[starts] * state
    kept = decay.clone()
    kept[starts] = 0
    return decay, kept, scan(kept, write)


def forward(*operands: Any) -> tuple[Tensor, Tensor]:
    """Return outputs [total, D] in x's dtype and final states [N, D, K]; `operands` are a Scan's."""
    x, step, A, B, C, offsets, state, _ = s = Scan(*operands)
    out, final = shapes(*s)
    dtype = s.dtype
    starts, ends = offsets[:-1].long(), offsets[1:].long() - 1
    B, C = B.to(dtype), C.to(dtype)
    for d in blocks(x.shape[0], *A.shape):
        initial = None if state is None else state[:, d].to(dtype)
        h = states(x[:, d].to(dtype), step[:, d].to(dtype), A[d].to(dtype), B, starts, initial)[2]
        out[:, d] = torch.einsum("tdk,tk->td", h, C).to(x.dtype)
        final[:, d] = h[ends]
    return out, final


def backward(d_out: Tensor, d_final: Tensor | None, *operands: Any) -> tuple[Tensor, ...]:
    """Return the gradients of (x, step, A, B, C, state); the states are computed again."""
    x, step, A, B, C, offsets, state, _ = s = Scan(*operands)
    dtype = s.dtype
    d_x, d_step = (torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, step))
    d_A = torch.empty_like(A, memory_format=torch.contiguous_format)
    wide_B, wide_C = B.to(dtype), C.to(dtype)
    d_B, d_C = torch.zeros_like(wide_B), torch.zeros_like(wide_C)
    d_state = x.new_zeros(0) if state is None else torch.empty_like(state, memory_format=torch.contiguous_format)
    starts, ends = offsets[:-1].long(), offsets[1:].long() - 1
    for d in blocks(x.shape[0], *A.shape):
        inputs, steps, decays, due = (y.to(dtype) for y in (x[:, d], step[:, d], A[d], d_out[:, d]))
        initial = None if state is None else state[:, d].to(dtype)
        decay, kept, h = states(inputs, steps, decays, wide_B, starts, initial)
        d_C += torch.einsum("td,tdk->tk", due, h)
        d_h = due.unsqueeze(-1) * wide_C.unsqueeze(1)
        if d_final is not None:
            d_h[ends] += d_final[:, d]
        later = torch.cat((kept[1:], torch.zeros_like(kept[:1])))  # what the next token keeps of this one
        d_h = scan(later.flip(0), d_h.flip(0)).flip(0)
        before = torch.cat((torch.zeros_like(h[:1]), h[:-1]))
        before[starts] = 0 if initial is None else initial
        d_log = d_h * before * decay
        wrote = torch.einsum("tdk,tk->td", d_h, wide_B)
        d_x[:, d] = (wrote * steps).to(x.dtype)
        d_step[:, d] = (wrote * inputs + torch.einsum("tdk,dk->td", d_log, decays)).to(step.dtype)
        d_A[d] = torch.einsum("tdk,td->dk", d_log, steps).to(A.dtype)
        d_B += torch.einsum("tdk,td->tk", d_h, steps * inputs)
        if state is not None:
            d_state[:, d] = (d_h[starts] * decay[starts]).to(state.dtype)
    return d_x, d_step, d_A, d_B.to(B.dtype), d_C.to(C.dtype), d_state


_operator = custom_op("selective_scan", Signature(INPUTS, GRADIENTS), forward, backward, shapes)


def run(s: Scan) -> tuple[Tensor, Tensor]:
    """`selective_scan` on any device."""
    if s.time != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _operator(*s)
    x, step, A, B, C = (y.to(s.dtype) for y in (s.x, s.step, s.A, s.B, s.C))
    h = step.unsqueeze(-1) * x.unsqueeze(-1) * B.unsqueeze(1)
    if s.state is not None:
        h.addcmul_(torch.exp(step.unsqueeze(-1) * A), s.state.to(s.dtype))
    return (h @ C.unsqueeze(-1)).squeeze(-1).to(s.x.dtype), h
