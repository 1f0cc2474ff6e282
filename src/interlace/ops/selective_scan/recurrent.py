"""The truth: Mamba's selective scan one token at a time.

Source: Gu, Dao, "Mamba", arXiv 2312.00752, equation 2 with the discretisation of section 3.6 (zero-order hold for A,
Euler for B).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments


def recurrent(
    x: Float[Tensor, "total D"],
    step: Float[Tensor, "total D"],
    A: Float[Tensor, "D K"],
    B: Float[Tensor, "total K"],
    C: Float[Tensor, "total K"],
    segments: Segments,
    state: Float[Tensor, "N D K"] | None,
) -> tuple[Float[Tensor, "total D"], Float[Tensor, "N D K"]]:
    """h <- exp(step A) h + step x B;  out = h C, for each token in turn.

    Runs in the inputs' dtype, float32 at least; differentiable by plain autograd.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs, steps, decay, keys, queries = (y.to(dtype) for y in (x, step, A, B, C))
    outputs, states = [], []
    for row, (first, end) in enumerate(segments.spans()):
        h = inputs.new_zeros(decay.shape) if state is None else state[row].to(dtype)
        for t in range(first, end):
            h = torch.exp(steps[t, :, None] * decay) * h + torch.outer(steps[t] * inputs[t], keys[t])
            outputs.append(h @ queries[t])
        states.append(h)
    return torch.stack(outputs).to(x.dtype), torch.stack(states)
