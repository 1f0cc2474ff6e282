"""The truth: Kimi Delta Attention one token at a time.

Source: Kimi Team, "Kimi Linear", arXiv 2510.26692, equation 1, in the layout S [K, V].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core.normalise import normalised


def recurrent(
    query: Float[Tensor, "total H K"],
    key: Float[Tensor, "total H K"],
    value: Float[Tensor, "total G V"],
    log_decay: Float[Tensor, "total G K"],
    beta: Float[Tensor, "total G"],
    segments: Segments,
    state: Float[Tensor, "N G K V"] | None,
    scale: float,
    normalise: bool = False,
) -> tuple[Float[Tensor, "total G V"], Float[Tensor, "N G K V"]]:
    """S <- diag(exp(log_decay)) S;  S <- S + beta k (v - S^T k)^T;  o = scale S^T q, for each token in turn.

    Runs in the inputs' dtype, float32 at least; differentiable by plain autograd.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    group = value.shape[1] // key.shape[1]
    q, k = (x.to(dtype).repeat_interleave(group, dim=1) for x in (query, key))
    if normalise:
        q, k = normalised(q), normalised(k)
    v, beta, decay = value.to(dtype), beta.to(dtype), log_decay.to(dtype).exp()
    outputs, states = [], []
    for row, (first, end) in enumerate(segments.spans()):
        S = v.new_zeros(v.shape[1], k.shape[2], v.shape[2]) if state is None else state[row].to(dtype)
        for t in range(first, end):
            S = decay[t, :, :, None] * S
            error = v[t] - torch.einsum("gkv,gk->gv", S, k[t])
            S = S + torch.einsum("g,gk,gv->gkv", beta[t], k[t], error)
            outputs.append(scale * torch.einsum("gkv,gk->gv", S, q[t]))
        states.append(S)
    return torch.stack(outputs).to(value.dtype), torch.stack(states)
