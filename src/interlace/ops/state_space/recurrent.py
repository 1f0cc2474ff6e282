"""The truth: Mamba-2's recurrence one token at a time.

Source: Dao, Gu, "Transformers are SSMs", arXiv 2405.21060, section 3 and 6, in the layout S [K, V] and with the words
of attention: C is the query, B the key, x the value, and dt the step that the write is multiplied by.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments


def recurrent(
    query: Float[Tensor, "total H K"],
    key: Float[Tensor, "total H K"],
    value: Float[Tensor, "total G V"],
    log_decay: Float[Tensor, "total G"],
    step: Float[Tensor, "total G"],
    segments: Segments,
    state: Float[Tensor, "N G K V"] | None,
    scale: float,
) -> tuple[Float[Tensor, "total G V"], Float[Tensor, "N G K V"]]:
    """S <- exp(log_decay) S + step k v^T;  o = scale S^T q, for each token in turn.

    Runs in the inputs' dtype, float32 at least; differentiable by plain autograd.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    group = value.shape[1] // key.shape[1]
    q, k = (x.to(dtype).repeat_interleave(group, dim=1) for x in (query, key))
    v, step, decay = value.to(dtype), step.to(dtype), log_decay.to(dtype).exp()
    outputs, states = [], []
    for row, (first, end) in enumerate(segments.spans()):
        S = v.new_zeros(v.shape[1], k.shape[2], v.shape[2]) if state is None else state[row].to(dtype)
        for t in range(first, end):
            S = decay[t, :, None, None] * S + torch.einsum("g,gk,gv->gkv", step[t], k[t], v[t])
            outputs.append(scale * torch.einsum("gkv,gk->gv", S, q[t]))
        states.append(S)
    return torch.stack(outputs).to(value.dtype), torch.stack(states)
