"""The truth: Mamba-2's recurrence one token at a time.

Source: Dao, Gu, "Transformers are SSMs", arXiv 2405.21060, section 3 and 6, in the layout S [K, V] and with the words
of attention: C is the query, B the key, x the value, and dt the step that the write is multiplied by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core.operands import Recurrence


def recurrent(x: Recurrence) -> tuple[Tensor, Tensor]:
    """S <- exp(log_decay) S + step k v^T;  o = scale S^T q, for each token in turn.

    Runs in the inputs' dtype, float32 at least; differentiable by plain autograd.
    """
    q, k, v, log_decay, step = x.wide()
    decay = log_decay.exp()
    outputs, states = [], []
    for row, (first, end) in enumerate(x.spans()):
        S = x.first_state(row)
        for t in range(first, end):
            S = decay[t, :, None, None] * S + torch.einsum("g,gk,gv->gkv", step[t], k[t], v[t])
            outputs.append(x.scale * torch.einsum("gkv,gk->gv", S, q[t]))
        states.append(S)
    return torch.stack(outputs).to(x.value.dtype), torch.stack(states)
