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
from interlace.data.batches import IGNORE, Batch, few
from interlace.layers.moe import Load
from interlace.model.model import HybridLM
from interlace.ops.core.tables import on_device
from interlace.ops.cross_entropy.dispatch import cross_entropy_
from interlace.train.objectives.base import Loss

BLOCK_ELEMENTS = 1 << 24  # logits that exist at a time on a CPU
GPU_ELEMENTS = 1 << 28  # the same on a GPU: products of 1,024 rows and more, for vocabularies up to 2^18


class _Loss(torch.autograd.Function):
    """Sum of -log p(target) / count; gradients are formed beside the loss, since a softmax has them at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, shares: Tensor | None
    ) -> Tensor:
        on_cpu = hidden.device.type == "cpu"
        if shares is None and not on_cpu:  # the host does not wait for the count
            kept = targets != IGNORE
            shares = kept / kept.sum().clamp(min=1)
        count = max(1, int((targets != IGNORE).sum())) if shares is None else 1
        d_hidden, d_weight = torch.empty_like(hidden, dtype=dtype), None
        cast, total = weight.to(dtype), hidden.new_zeros((), dtype=torch.float32)
        block = max(1, (BLOCK_ELEMENTS if on_cpu else GPU_ELEMENTS) // weight.shape[0])
        for start in range(0, hidden.shape[0], block):
            rows = slice(start, start + block)
            h, goal, share = hidden[rows].to(dtype), targets[rows], None if shares is None else shares[rows]
            logits = h @ cast.T
            factor = 1 / count if share is None or on_cpu else share
            losses = cross_entropy_(logits, goal, ignored=IGNORE, factor=factor)
            if share is not None and on_cpu:
                logits.mul_(share[:, None])
            total += (losses if share is None else losses * share).sum()
            torch.mm(logits, cast, out=d_hidden[rows])
            d_weight = _added(d_weight, logits.T, h, weight.dtype)
        d_weight = torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtype = hidden.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        if d_loss.device.type != "cpu" or d_loss != 1:
            d_hidden, d_weight = d_hidden * d_loss, d_weight * d_loss
        return d_hidden.to(ctx.dtype), d_weight, None, None, None


def _added(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return total + a b; total is changed. Sums are of `dtype` on a CPU, and float32 on a GPU."""
    part = a @ b
    if total is None:
        return part.to(dtype if a.device.type == "cpu" else torch.float32)
    return total.add_(part)


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
        targets: int64 [total], on hidden's device or on the CPU; those on a GPU are not waited for, and the head then
            reads the rows of ignored ones too.
        dtype: of the matrix products; None for hidden's.
        weights: float32 [total], how much each target counts, at least 0; None where all count the same. The loss is 0
            where nothing counts.

    Raises:
        ShapeError: a weight on the CPU is negative or not finite, or there are not as many as targets.
    """
    if weights is not None:
        _check_weights(weights, targets)
    kept, device = targets != IGNORE, hidden.device
    if targets.device.type == "cpu" and few(targets):  # the head reads their rows only
        places = kept.nonzero().squeeze(1)
        hidden, targets = hidden[on_device(places, device)], targets[places]
        weights = None if weights is None else weights[on_device(places, weights.device)]
        kept = kept[places]
    shares = None
    if weights is not None:
        shares = on_device(_shares(torch.where(on_device(kept, weights.device), weights, 0.0)), device)
    return _Loss.apply(hidden, weight, on_device(targets, device), dtype or hidden.dtype, shares)


def _check_weights(weights: Tensor, targets: Tensor) -> None:
    if weights.shape != targets.shape:
        raise ShapeError(f"weights: must be one for each target, {list(targets.shape)}, got {list(weights.shape)}")
    if weights.device.type != "cpu":
        return
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
            read = model.read(on_device(batch.tokens, device), batch.segments)
        value = next_token_loss(read.hidden, model.head.weight, batch.targets, dtype if low else None, batch.weights)
        return Loss(value, value + self._unevenness(model, read.loads), read.loads)

    def _unevenness(self, model: HybridLM, loads: Sequence[Load | None]) -> Tensor | float:
        """The auxiliary loss that balances experts; 0 where there are none, or where they have a correction."""
        blocks: list[Any] = list(model.blocks)
        uneven = [x.balance for b, x in zip(blocks, loads, strict=True) if x is not None and b.mlp.correction is None]
        return self.balance_loss * torch.stack(uneven).mean() if uneven else 0.0
