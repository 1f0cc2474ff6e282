"""The truth: the norm as the paper writes it; differentiable by plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import sigmoid, silu

from interlace.ops.rms_norm.operands import Operands


def plain(operands: Operands) -> tuple[Tensor, Tensor]:
    """s = x + before; out = (weight + offset) s / sqrt(mean(s^2) + eps) act(gate) + after; float32 statistics."""
    x, weight, before, gate, after, form, dtype = operands
    wide = torch.promote_types(x.dtype, torch.float32)
    s = x if before is None else (x.to(wide) + before.to(wide)).to(x.dtype)
    y = s.to(wide)
    opened = None if gate is None else (silu if form.activation == "silu" else sigmoid)(gate.to(wide))
    if opened is not None and form.gate_first:
        y = y * opened
    out = (weight.to(wide) + form.offset) * (y * torch.rsqrt((y * y).sum(-1, keepdim=True) / y.shape[-1] + form.eps))
    if opened is not None and not form.gate_first:
        out = out * opened
    if after is not None:
        out = out + after.to(wide)
    return out.to(dtype), s
