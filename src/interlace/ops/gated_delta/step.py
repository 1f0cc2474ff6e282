"""One token for each of N sequences: the decode step."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.operands import Recurrence


def step(x: Recurrence) -> tuple[Tensor, Tensor]:
    """The recurrence for one token per sequence, all sequences at once; no autograd.

    The old state is read once for both k and q, using o = scale (exp(log_decay) S^T q + (k . q) w),
    where w = beta (v - exp(log_decay) S^T k) is what the token writes.

    Shapes: query, key [N, H, K]; value [N, G, V]; log_decay, beta [N, G]; state [N, G, K, V], not changed.
    """
    query, key, value, log_decay, beta, _, state, scale, _, _ = x.unit()
    dtype, (N, G, V) = x.dtype, value.shape
    H, K = key.shape[1:]
    k, q = key.to(dtype), query.to(dtype)
    overlap = (k * q).sum(-1, keepdim=True)
    kq = torch.stack((k, q), dim=2)
    if G != H:
        kq, k = kq.repeat_interleave(G // H, dim=1), k.repeat_interleave(G // H, dim=1)
        overlap = overlap.repeat_interleave(G // H, dim=1)
    write = value.to(dtype)
    if state is None:
        write = write * beta.to(dtype).unsqueeze(-1)
        return (overlap * write * scale).to(value.dtype), k.unsqueeze(-1) * write.unsqueeze(-2)
    decay = log_decay.to(dtype).exp().unsqueeze(-1)
    read = torch.bmm(kq.reshape(N * G, 2, K), state.to(dtype).reshape(N * G, K, V)).view(N, G, 2, V) * decay[..., None]
    write = (write - read[:, :, 0]) * beta.to(dtype).unsqueeze(-1)
    out = torch.addcmul(read[:, :, 1], overlap, write).mul_(scale)
    new = (state.to(dtype) * decay[..., None]).addcmul_(k.unsqueeze(-1), write.unsqueeze(-2))
    return out.to(value.dtype), new
