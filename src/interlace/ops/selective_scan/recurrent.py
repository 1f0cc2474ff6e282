"""The truth: Mamba's selective scan one token at a time.

Source: Gu, Dao, "Mamba", arXiv 2312.00752, equation 2 with the discretisation of section 3.6 (zero-order hold for A,
Euler for B).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from interlace.ops.selective_scan.operands import Scan


def recurrent(s: Scan) -> tuple[Tensor, Tensor]:
    """h <- exp(step A) h + step x B;  out = h C, for each token in turn.

    Runs in the inputs' dtype, float32 at least; differentiable by plain autograd.
    """
    x, step, A, B, C = (y.to(s.dtype) for y in (s.x, s.step, s.A, s.B, s.C))
    outputs, states = [], []
    for row, (first, end) in enumerate(pairwise(s.offsets.tolist())):
        h = x.new_zeros(A.shape) if s.state is None else s.state[row].to(s.dtype)
        for t in range(first, end):
            h = torch.exp(step[t, :, None] * A) * h + torch.outer(step[t] * x[t], B[t])
            outputs.append(h @ C[t])
        states.append(h)
    return torch.stack(outputs).to(s.x.dtype), torch.stack(states)
