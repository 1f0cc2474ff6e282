"""The truth: every expert on every token, weighed with what the token chose; differentiable by plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu, silu


def act(hidden: Tensor, activation: str) -> Tensor:
    """SiLU(gate) up of [rows, gate and up side by side], or ReLU squared."""
    if activation == "relu2":
        return relu(hidden).square()
    gate, up = hidden.chunk(2, dim=-1)
    return silu(gate) * up


def plain(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    """Map x [rows, D], chosen and weights [rows, k], first [E, A, D], second [E, D', I] to [rows, D']."""
    out = x.new_zeros(x.shape[0], second.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    for expert in range(first.shape[0]):
        share = (weights * (chosen == expert)).sum(1, keepdim=True)
        out = out + share * (act(x @ first[expert].to(x.dtype).T, activation) @ second[expert].to(x.dtype).T)
    return out.to(x.dtype)
