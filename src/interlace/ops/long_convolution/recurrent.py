"""The truth: every output is the sum of all inputs so far, each with the tap of its age."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments


def recurrent(x: Float[Tensor, "total D"], taps: Float[Tensor, "L D"], segments: Segments) -> Float[Tensor, "total D"]:
    """out_t = sum_{j <= t} taps_j x_{t-j}, for each token in turn; float32 at least, differentiable by autograd."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    inputs, weights = x.to(dtype), taps.to(dtype)
    outputs = []
    for first, end in segments.spans():
        for t in range(first, end):
            outputs.append((inputs[first : t + 1].flip(0) * weights[: t + 1 - first]).sum(0))
    return torch.stack(outputs).to(x.dtype)
