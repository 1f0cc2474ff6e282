"""Log-probabilities of tokens, with gradients, for a block of tokens at a time: the logits are never all in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interlace.train.objectives.next_token import block_rows


class _LogProbs(torch.autograd.Function):
    """log p(target) of each row; the backward pass computes the logits again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        cast, wide = weight.to(dtype), torch.promote_types(dtype, torch.float32)
        found, sums = (hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(2))
        for rows in _blocks(hidden, weight):
            logits = (hidden[rows].to(dtype) @ cast.T).to(wide)
            sums[rows] = logits.logsumexp(-1)
            found[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - sums[rows]
        ctx.save_for_backward(hidden, weight, targets, sums)
        ctx.dtype, ctx.fixed = dtype, not weight.requires_grad
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_found: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, sums = ctx.saved_tensors
        cast, wide = weight.to(ctx.dtype), sums.dtype
        d_hidden = torch.empty_like(hidden)
        d_weight = None if ctx.fixed else torch.zeros_like(weight, dtype=wide)
        for rows in _blocks(hidden, weight):
            h, d = hidden[rows].to(ctx.dtype), d_found[rows].to(wide)[:, None]
            d_logits = ((h @ cast.T).to(wide) - sums[rows, None]).exp_().mul_(-d)  # of log p: one-hot minus softmax
            d_logits.scatter_add_(1, targets[rows, None], d)
            d_logits = d_logits.to(ctx.dtype)
            d_hidden[rows] = (d_logits @ cast).to(hidden.dtype)
            if d_weight is not None:
                d_weight += d_logits.T @ h
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None


def _blocks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = block_rows(hidden.device, weight.shape[0])
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return log p(target) in nats, float32 at least, [rows].

    Args:
        hidden: [rows, D], what the head reads.
        weight: [vocabulary, D], the head.
        targets: int64 [rows], on the same device.
        dtype: of the matrix products; None for hidden's.
    """
    found: Tensor = _LogProbs.apply(hidden, weight, targets, dtype or hidden.dtype)
    return found
