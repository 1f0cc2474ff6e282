"""The truth: each output is a weighted sum of the last W inputs of its own sequence."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from interlace.ops.short_convolution.operands import Convolution


def recurrent(c: Convolution) -> tuple[Tensor, Tensor]:
    """window <- (window, x_t)[1:];  y = sum_j weight_j window_j + bias;  out = SiLU(y), for each token in turn."""
    x, columns = c.x.to(c.dtype), c.weight.to(c.dtype).T
    taps, bias = (columns[:-1], columns[-1]) if c.biased else (columns, 0)
    outputs, states = [], []
    for row, (first, end) in enumerate(pairwise(c.offsets.tolist())):
        past = x.new_zeros(c.history, x.shape[1]) if c.state is None else c.state[row].to(c.dtype)
        for t in range(first, end):
            window = torch.cat((past, x[t : t + 1]))
            y = (window * taps).sum(0) + bias
            outputs.append(torch.nn.functional.silu(y) if c.activated else y)
            past = window[1:]
        states.append(past)
    return torch.stack(outputs).to(c.x.dtype), torch.stack(states).to(c.x.dtype)
