"""One token for each of N sequences: the decode step."""

from __future__ import annotations

import torch
from torch import Tensor


def step(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The recurrence for one token per sequence, all sequences at once; no autograd.

    Shapes: query, key [N, H, K]; value [N, G, V]; log_decay [N, G, K]; beta [N, G]; state [N, G, K, V], not changed.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    group = value.shape[1] // key.shape[1]
    k, q = (x.to(dtype).repeat_interleave(group, dim=1) for x in (key, query))
    write = value.to(dtype)
    if state is not None:
        S = state.to(dtype) * log_decay.to(dtype).exp().unsqueeze(-1)
        write = write - (k.unsqueeze(-2) @ S).squeeze(-2)
    written = k.unsqueeze(-1) * (write * beta.to(dtype).unsqueeze(-1)).unsqueeze(-2)
    new = written if state is None else S.add_(written)
    out = scale * (q.unsqueeze(-2) @ new).squeeze(-2)
    return out.to(value.dtype), new
