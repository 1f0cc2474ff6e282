"""The truth: the gated delta rule one token at a time, as the paper writes it.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464, equation 10, in the transposed
layout S [K, V]; with negative eigenvalues (beta up to 2) as in Grazzi et al., arXiv 2411.12537.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.operands import Recurrence


def recurrent(x: Recurrence) -> tuple[Tensor, Tensor]:
    """S <- exp(log_decay) S;  S <- S + beta k (v - S^T k)^T;  o = scale S^T q, for each token in turn.

    Runs in the inputs' dtype, float32 at least; differentiable by plain autograd.
    """
    q, k, v, log_decay, beta = x.wide()
    decay = log_decay.exp()
    outputs, states = [], []
    for row, (first, end) in enumerate(x.spans()):
        S = x.first_state(row)
        for t in range(first, end):
            S = decay[t, :, None, None] * S
            error = v[t] - torch.einsum("gkv,gk->gv", S, k[t])
            S = S + torch.einsum("g,gk,gv->gkv", beta[t], k[t], error)
            outputs.append(x.scale * torch.einsum("gkv,gk->gv", S, q[t]))
        states.append(S)
    return torch.stack(outputs).to(x.value.dtype), torch.stack(states)
