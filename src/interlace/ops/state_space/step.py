"""One token for each of N sequences: the decode step."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.operands import Recurrence


def step(x: Recurrence) -> tuple[Tensor, Tensor]:
    """The recurrence for one token per sequence, all sequences at once; no autograd.

    Shapes: query, key [N, H, K]; value [N, G, V]; log_decay, step [N, G]; state [N, G, K, V], not changed.
    """
    query, key, value, log_decay, steps, _, state, scale, _, _ = x
    dtype = x.dtype
    group = value.shape[1] // key.shape[1]
    k, q = (y.to(dtype).repeat_interleave(group, dim=1) for y in (key, query))
    written = k.unsqueeze(-1) * (value.to(dtype) * steps.to(dtype).unsqueeze(-1)).unsqueeze(-2)
    if state is not None:
        written = torch.addcmul(written, state.to(dtype), log_decay.to(dtype).exp()[..., None, None])
    out = scale * (q.unsqueeze(-2) @ written).squeeze(-2)
    return out.to(value.dtype), written
