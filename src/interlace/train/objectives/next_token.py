"""Next-token cross-entropy, for a block of tokens at a time: the logits are never all in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interlace.base.errors import ShapeError
from interlace.data.batches import IGNORE, Batch
from interlace.layers.moe import Load
from interlace.model.model import HybridLM
from interlace.ops.cross_entropy.dispatch import cross_entropy_
from interlace.train.objectives.base import Loss

BLOCK_ELEMENTS = 1 << 24  # logits that exist at a time


class _Loss(torch.autograd.Function):
    """Sum of -log p(target) / count; gradients are formed beside the loss, since a softmax has them at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, shares: Tensor | None
    ) -> Tensor:
        count = max(1, int((targets != IGNORE).sum())) if shares is None else 1
        d_hidden, d_weight = torch.empty_like(hidden, dtype=dtype), None
        cast, total = weight.to(dtype), hidden.new_zeros((), dtype=torch.float32)
        block = max(1, BLOCK_ELEMENTS // weight.shape[0])
        for start in range(0, hidden.shape[0], block):
            rows = slice(start, start + block)
            h, goal = hidden[rows].to(dtype), targets[rows]
            logits = h @ cast.T
            losses = cross_entropy_(logits, goal, ignored=IGNORE, factor=1 / count)
            if shares is not None:
                losses = losses * shares[rows]
                logits.mul_(shares[rows, None])
            total += losses.sum()
            torch.mm(logits, cast, out=d_hidden[rows])
            part = logits.T @ h
            d_weight = part.to(weight.dtype) if d_weight is None else d_weight.add_(part)
        d_weight = torch.zeros_like(weight) if d_weight is None else d_weight
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtype = hidden.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        if d_loss != 1:
            d_hidden, d_weight = d_hidden * d_loss, d_weight * d_loss
        return d_hidden.to(ctx.dtype), d_weight, None, None, None


def next_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean -log p(target), in nats, over targets that are not IGNORE.

    Args:
        hidden: [total, D], what the head reads.
        weight: [vocabulary, D], the head.
        targets: int64 [total].
        dtype: of the matrix products; None for hidden's.
        weights: float32 [total], how much each target counts, at least 0; None where all count the same. The loss is 0
            where nothing counts.

    Raises:
        ShapeError: a weight is negative or not finite, or there are not as many as targets.
    """
    if weights is not None:
        _check_weights(weights, targets)
    kept = targets != IGNORE
    if 2 * int(kept.sum()) < targets.shape[0]:  # few targets: the head reads their rows only
        hidden, targets = hidden[kept], targets[kept]
        weights = None if weights is None else weights[kept]
        kept = kept[kept]
    shares = None if weights is None else _shares(torch.where(kept, weights, 0.0))
    return _Loss.apply(hidden, weight, targets, dtype or hidden.dtype, shares)


def _check_weights(weights: Tensor, targets: Tensor) -> None:
    if weights.shape != targets.shape:
        raise ShapeError(f"weights: must be one for each target, {list(targets.shape)}, got {list(weights.shape)}")
    wrong = weights[~(torch.isfinite(weights) & (weights >= 0))]
    if wrong.numel():
        raise ShapeError(f"weights: must be finite and at least 0, got {float(wrong[0])}")


def _shares(weights: Tensor) -> Tensor:
    """Return weights that sum to 1; all 0 if there is nothing to share. Their sum is float64, for any scale."""
    wide = weights.double()
    total = wide.sum()
    return torch.where(total > 0, wide / total, 0.0).to(torch.float32)


@dataclass(frozen=True)
class NextToken:
    """The objective of language modelling.

    Attributes:
        precision: "float32" or "bfloat16", of the matrix products.
        balance_loss: weight of the loss that evens the load of experts, where they have no correction.
    """

    precision: str = "float32"
    balance_loss: float = 0.0

    def __call__(self, model: HybridLM, batch: Batch) -> Loss:
        """Return the mean nats per target of a batch."""
        device, dtype = model.device, getattr(torch, self.precision)
        low = dtype != torch.float32
        with torch.autocast(device.type, dtype=dtype) if low else nullcontext():
            read = model.read(batch.tokens.to(device), batch.segments)
        weights = None if batch.weights is None else batch.weights.to(device)
        targets, head = batch.targets.to(device), model.head.weight
        value = next_token_loss(read.hidden, head, targets, dtype if low else None, weights)
        return Loss(value, value + self._unevenness(model, read.loads), read.loads)

    def _unevenness(self, model: HybridLM, loads: Sequence[Load | None]) -> Tensor | float:
        """The auxiliary loss that balances experts; 0 where there are none, or where they have a correction."""
        blocks: list[Any] = list(model.blocks)
        uneven = [x.balance for b, x in zip(blocks, loads, strict=True) if x is not None and b.mlp.correction is None]
        return self.balance_loss * torch.stack(uneven).mean() if uneven else 0.0
