"""Experts one after the other, each as one product over the tokens that chose it; backward runs them again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import relu, silu

from interlace.base.errors import ShapeError
from interlace.ops.experts.plain import act


def by_expert(chosen: Tensor, experts: int) -> Iterator[tuple[int, Tensor]]:
    """(expert, the places in the flattened choices [rows k] that name it), for those that were chosen."""
    flat = chosen.flatten()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < experts:
        raise ShapeError(f"experts: chosen must lie in [0, {experts}), got {int(flat.min())} to {int(flat.max())}")
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=experts)
    used = counts.nonzero().flatten().tolist()
    yield from zip(used, order.split(counts[counts > 0].tolist()), strict=True)


def forward(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    """x [rows, D], chosen and weights [rows, k], first [E, A, D], second [E, D', I] to [rows, D']."""
    rows, k = chosen.shape
    each = x.new_empty(rows * k, second.shape[1])
    for expert, places in by_expert(chosen, first.shape[0]):
        hidden = act(x[places // k] @ first[expert].to(x.dtype).T, activation)
        each[places] = hidden @ second[expert].to(x.dtype).T
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.einsum("rkd,rk->rd", each.view(rows, k, -1).to(wide), weights.to(wide)).to(x.dtype)


def act_back(d_hidden: Tensor, hidden: Tensor, activation: str) -> Tensor:
    """The gradient of `act`'s input."""
    if activation == "relu2":
        return 2 * relu(hidden) * d_hidden
    gate, up = hidden.chunk(2, dim=-1)
    opened = gate.sigmoid()
    return torch.cat((d_hidden * up * opened * (1 + gate * (1 - opened)), d_hidden * silu(gate)), dim=-1)


def backward(
    d_out: Tensor, x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, weights, first, second)."""
    rows, k = chosen.shape
    d_each = x.new_empty(rows * k, x.shape[1])
    d_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    d_first, d_second = (torch.zeros_like(w, memory_format=torch.contiguous_format) for w in (first, second))
    flat, d_flat = weights.flatten(), d_weights.view(-1)
    for expert, places in by_expert(chosen, first.shape[0]):
        inputs, d_outs = x[places // k], d_out[places // k]
        A, B = first[expert].to(x.dtype), second[expert].to(x.dtype)
        hidden = inputs @ A.T
        opened = act(hidden, activation)
        due = d_outs @ B
        d_flat[places] = (due * opened).sum(-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(weights.dtype)
        share = flat[places, None].to(x.dtype)
        d_hidden = act_back(share * due, hidden, activation)
        d_second[expert] = (share * d_outs).T @ opened
        d_first[expert] = d_hidden.T @ inputs
        d_each[places] = d_hidden @ A
    d_x = d_each.view(rows, k, -1).sum(1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
    return d_x, d_weights, d_first, d_second
