"""The truth: Kimi Delta Attention one token at a time.

Source: Kimi Team, "Kimi Linear", arXiv 2510.26692, equation 1, in the layout S [K, V].
"""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.operands import Recurrence


def recurrent(x: Recurrence) -> tuple[Tensor, Tensor]:
    """S <- diag(exp(log_decay)) S;  S <- S + beta k (v - S^T k)^T;  o = scale S^T q, for each token in turn.

    Runs in the inputs' dtype, float32 at least; differentiable by plain autograd.
    """
    q, k, v, log_decay, beta = x.wide()
    decay = log_decay.exp()
    outputs, states = [], []
    for row, (first, end) in enumerate(x.spans()):
        S = x.first_state(row)
        for t in range(first, end):
            S = decay[t, :, :, None] * S
            error = v[t] - torch.einsum("gkv,gk->gv", S, k[t])
            S = S + torch.einsum("g,gk,gv->gkv", beta[t], k[t], error)
            outputs.append(x.scale * torch.einsum("gkv,gk->gv", S, q[t]))
        states.append(S)
    return torch.stack(outputs).to(x.value.dtype), torch.stack(states)
