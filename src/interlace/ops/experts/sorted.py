"""Experts one after the other, each as one product over the tokens that chose it; backward runs them again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import relu, silu

from interlace.base.errors import ShapeError
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.quantised import Quantised
from interlace.ops.experts.plain import act

Expert = Tensor | Quantised
LARGEST = 1024  # rows of one product
LEAST = 4  # of fewer rows a library takes other sums: a token's result would depend on who chose its expert with it
INPUTS = "Tensor x, Tensor chosen, Tensor weights, Tensor first, Tensor second, str activation"
GRADIENTS = ("x", "weights", "first", "second")


def by_expert(chosen: Tensor, experts: int) -> Iterator[tuple[int, Tensor]]:
    """Return (expert, places in the flattened choices [rows k] that name it), in blocks of 2^n places.

    The library keeps a compiled product for each number of rows it has met: blocks leave it a dozen to keep.
    """
    flat = chosen.flatten()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < experts:
        raise ShapeError(f"experts: chosen must lie in [0, {experts}), got {int(flat.min())} to {int(flat.max())}")
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=experts)
    used = counts.nonzero().flatten().tolist()
    for expert, places in zip(used, order.split(counts[counts > 0].tolist()), strict=True):
        start = 0
        while start < places.shape[0]:
            size = min(LARGEST, 1 << (places.shape[0] - start).bit_length() - 1)
            yield expert, places[start : start + size]
            start += size


def _filled(tokens: Tensor) -> Tensor:
    """Return at least LEAST tokens, the last one as often as needed."""
    missing = LEAST - tokens.shape[0]
    return tokens if missing <= 0 else torch.cat((tokens, tokens[-1:].expand(missing)))


def _weight(all_weights: Expert, expert: int, x: Tensor) -> Tensor:
    if isinstance(all_weights, Quantised):
        return all_weights.at(expert).weight(x.dtype)
    return all_weights[expert].to(x.dtype)


def forward(x: Tensor, chosen: Tensor, weights: Tensor, first: Expert, second: Expert, activation: str) -> Tensor:
    """Map x [rows, D], chosen and weights [rows, k], first [E, A, D], second [E, D', I] to [rows, D']."""
    k, wide = chosen.shape[1], torch.promote_types(x.dtype, torch.float32)
    out = x.new_zeros(x.shape[0], second.shape[1], dtype=wide)
    shares = weights.flatten().to(wide)
    for expert, places in by_expert(chosen, first.shape[0]):
        tokens = places // k
        inputs = x[_filled(tokens)]
        hidden = act(inputs @ _weight(first, expert, x).T, activation) @ _weight(second, expert, x).T
        hidden = hidden[: tokens.shape[0]]
        out.index_add_(0, tokens, hidden * shares[places, None])
    return out.to(x.dtype)


def act_back(d_hidden: Tensor, hidden: Tensor, activation: str) -> Tensor:
    """Return the gradient of `act`'s input."""
    if activation == "relu2":
        return 2 * relu(hidden) * d_hidden
    gate, up = hidden.chunk(2, dim=-1)
    opened = gate.sigmoid()
    return torch.cat((d_hidden * up * opened * (1 + gate * (1 - opened)), d_hidden * silu(gate)), dim=-1)


def backward(
    d_out: Tensor, x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of (x, weights, first, second)."""
    k = chosen.shape[1]
    d_x = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32), memory_format=torch.contiguous_format)
    d_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    d_first, d_second = (torch.zeros_like(w, memory_format=torch.contiguous_format) for w in (first, second))
    flat, d_flat = weights.flatten(), d_weights.view(-1)
    for expert, places in by_expert(chosen, first.shape[0]):
        tokens = places // k
        inputs, d_outs = x[tokens], d_out[tokens]
        A, B = first[expert].to(x.dtype), second[expert].to(x.dtype)
        hidden = inputs @ A.T
        opened = act(hidden, activation)
        due = d_outs @ B
        d_flat[places] = (due * opened).sum(-1, dtype=torch.promote_types(x.dtype, torch.float32)).to(weights.dtype)
        share = flat[places, None].to(x.dtype)
        d_hidden = act_back(share * due, hidden, activation)
        d_second[expert] += (share * d_outs).T @ opened
        d_first[expert] += d_hidden.T @ inputs
        d_x.index_add_(0, tokens, (d_hidden @ A).to(d_x.dtype))
    return d_x.to(x.dtype), d_weights, d_first, d_second


def shapes(x: Tensor, chosen: Tensor, weights: Tensor, first: Tensor, second: Tensor, activation: str) -> Tensor:
    """Return the output, with nothing in it."""
    return x.new_empty(x.shape[0], second.shape[1])


run = custom_op("experts", Signature(INPUTS, GRADIENTS, outputs=1), forward, backward, shapes)
