"""Next-token cross-entropy a block of tokens at a time, so that the logits are never all in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.data.batches import IGNORE

BLOCK = 1024  # tokens whose logits exist at a time


class _Loss(torch.autograd.Function):
    """Sum of -log p(target) / count; gradients are formed beside the loss, since a softmax has them at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        count = (targets != IGNORE).sum().clamp(min=1)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        cast, total = weight.to(dtype), hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.shape[0], BLOCK):
            rows = slice(start, start + BLOCK)
            h, goal = hidden[rows].to(dtype), targets[rows]
            valid = goal != IGNORE
            index = goal.where(valid, 0).unsqueeze(1)
            log_p = torch.log_softmax((h @ cast.T).float(), dim=-1)
            total -= (log_p.gather(1, index).squeeze(1) * valid).sum()
            d = log_p.exp_()
            d.scatter_add_(1, index, torch.full_like(index, -1, dtype=d.dtype))
            d = d.mul_(valid.unsqueeze(1) / count).to(dtype)
            d_hidden[rows] = d @ cast
            d_weight += d.T @ h
        ctx.save_for_backward(d_hidden, d_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * d_loss, d_weight * d_loss, None, None


def next_token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Mean -log p(target), in nats, over targets that are not IGNORE.

    Args:
        hidden: [total, D], what the head reads.
        weight: [vocabulary, D], the head.
        targets: int64 [total].
        dtype: of the matrix products; None for hidden's.
    """
    return _Loss.apply(hidden, weight, targets, dtype or hidden.dtype)
