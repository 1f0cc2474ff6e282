"""The truth: each output is a weighted sum of the last W inputs of its own sequence."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments


def recurrent(
    x: Float[Tensor, "total D"],
    weight: Float[Tensor, "D columns"],
    segments: Segments,
    state: Float[Tensor, "N history D"] | None,
    activation: str | None,
    biased: bool,
) -> tuple[Float[Tensor, "total D"], Float[Tensor, "N history D"]]:
    """window <- (window, x_t)[1:];  y = sum_j weight_j window_j + bias;  out = SiLU(y), for each token in turn."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    history = weight.shape[1] - biased - 1
    inputs, columns = x.to(dtype), weight.to(dtype).T
    taps, bias = (columns[:-1], columns[-1]) if biased else (columns, 0)
    outputs, states = [], []
    for row, (first, end) in enumerate(segments.spans()):
        past = inputs.new_zeros(history, x.shape[1]) if state is None else state[row].to(dtype)
        for t in range(first, end):
            window = torch.cat((past, inputs[t : t + 1]))
            y = (window * taps).sum(0) + bias
            outputs.append(torch.nn.functional.silu(y) if activation == "silu" else y)
            past = window[1:]
        states.append(past)
    return torch.stack(outputs).to(x.dtype), torch.stack(states).to(x.dtype)
