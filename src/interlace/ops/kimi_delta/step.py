"""One token for each of N sequences: the decode step."""

from __future__ import annotations

from torch import Tensor

from interlace.ops.core.operands import Recurrence


def step(x: Recurrence) -> tuple[Tensor, Tensor]:
    """The recurrence for one token per sequence, all sequences at once; no autograd.

    Shapes: query, key [N, H, K]; value [N, G, V]; log_decay [N, G, K]; beta [N, G]; state [N, G, K, V], not changed.
    """
    query, key, value, log_decay, beta, _, state, scale, _, _ = x.unit()
    dtype = x.dtype
    group = value.shape[1] // key.shape[1]
    k, q = (y.to(dtype).repeat_interleave(group, dim=1) for y in (key, query))
    write = value.to(dtype)
    if state is not None:
        S = state.to(dtype) * log_decay.to(dtype).exp().unsqueeze(-1)
        write = write - (k.unsqueeze(-2) @ S).squeeze(-2)
    written = k.unsqueeze(-1) * (write * beta.to(dtype).unsqueeze(-1)).unsqueeze(-2)
    new = written if state is None else S.add_(written)
    out = scale * (q.unsqueeze(-2) @ new).squeeze(-2)
    return out.to(value.dtype), new
