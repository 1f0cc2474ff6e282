"""Next-token cross-entropy, for a block of tokens at a time: the logits are never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interlace.base.errors import ShapeError
from interlace.data.batches import IGNORE, Batch, few
from interlace.layers.low_rank import with_adapter
from interlace.layers.moe import Load
from interlace.model.model import HybridLM
from interlace.ops.core.tables import on_device
from interlace.ops.cross_entropy.dispatch import cross_entropy_
from interlace.train.objectives.base import Loss, read_at

BLOCK_ELEMENTS = 1 << 24  # logits that exist at a time on a CPU
GPU_ELEMENTS = 1 << 28  # the same on a GPU: products of 1,024 rows and more, for vocabularies up to 2^18


class _Loss(torch.autograd.Function):
    """Sum of (-log p(target) + z (log of the softmax's sum)^2) / count, and of the first alone.

    Gradients are formed beside the loss, since a softmax has them at hand; that of a fixed head is left out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        shares: Tensor | None,
        whole: float | None,
        z: float,
        fixed: bool,
    ) -> tuple[Tensor, Tensor]:
        on_cpu = hidden.device.type == "cpu"
        if shares is None and not on_cpu:  # the host does not wait for the count
            kept = targets != IGNORE
            shares = kept / (kept.sum().clamp(min=1) if whole is None else max(1.0, whole))
        count: float = 1
        if shares is None:
            count = max(1, int((targets != IGNORE).sum()) if whole is None else whole)
        d_hidden, d_weight = torch.empty_like(hidden, dtype=dtype), None
        cast, total = weight.to(dtype), hidden.new_zeros((), dtype=torch.float32)
        squares = torch.zeros_like(total)
        block = block_rows(hidden.device, weight.shape[0])
        for start in range(0, hidden.shape[0], block):
            rows = slice(start, start + block)
            h, goal, share = hidden[rows].to(dtype), targets[rows], None if shares is None else shares[rows]
            logits = h @ cast.T
            factor = 1 / count if share is None or on_cpu else share
            at = goal.clamp(min=0)[:, None]
            before = logits.gather(1, at).squeeze(1).float() if z else None
            losses = cross_entropy_(logits, goal, ignored=IGNORE, factor=factor)
            if share is not None and on_cpu:
                logits.mul_(share[:, None])
            total += (losses if share is None else losses * share).sum()
            if before is not None:  # gradients of softmax minus one-hot become those of both terms
                sums = torch.where(goal == IGNORE, 0.0, losses + before)
                each = sums if share is None else sums * share
                squares += (z * sums * each).sum()
                logits.mul_((1 + 2 * z * sums).to(dtype)[:, None])
                logits.scatter_add_(1, at, (2 * z * each / count).to(dtype)[:, None])
            torch.mm(logits, cast, out=d_hidden[rows])
            if not fixed:
                d_weight = _added(d_weight, logits.T, h, weight.dtype)
        if not fixed:
            d_weight = torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtype = hidden.dtype
        value = total / count
        minimised = value + squares / count if z else value.clone()
        ctx.mark_non_differentiable(value)
        return minimised, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        if d_loss.device.type != "cpu" or d_loss != 1:
            d_hidden, d_weight = d_hidden * d_loss, None if d_weight is None else d_weight * d_loss
        return d_hidden.to(ctx.dtype), d_weight, None, None, None, None, None, None


def block_rows(device: torch.device, vocabulary: int) -> int:
    """Return of how many rows the logits exist at a time."""
    return max(1, (BLOCK_ELEMENTS if device.type == "cpu" else GPU_ELEMENTS) // vocabulary)


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
    """Mean -log p(target), in nats, over targets that are not IGNORE; see `next_token_losses`."""
    return next_token_losses(hidden, weight, targets, dtype, weights)[0]


def next_token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype | None = None,
    weights: Tensor | None = None,
    *,
    whole: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean -log p(target), in nats, over targets that are not IGNORE: with the z-loss, to be minimised, and alone.

    Args:
        hidden: [total, D], what the head reads.
        weight: [vocabulary, D], the head.
        targets: int64 [total], on hidden's device or on the CPU; those on a GPU are not waited for, and the head then
            reads the rows of ignored ones too.
        dtype: of the matrix products; None for hidden's.
        weights: float32 [total], how much each target counts, at least 0; None where all count the same. The loss is 0
            where nothing counts.
        whole: what the sum is divided by, where these are a part of a step's targets; None for their own count, or the
            sum of their weights.
        z_loss: weight of the squared logarithm of the softmax's sum. Source: Chowdhery et al., "PaLM", arXiv
            2204.02311, section 5.

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
        shares = on_device(_shares(torch.where(on_device(kept, weights.device), weights, 0.0), whole), device)
    targets = on_device(targets, device)
    fixed = not weight.requires_grad
    found: tuple[Tensor, Tensor] = _Loss.apply(
        hidden, weight, targets, dtype or hidden.dtype, shares, whole, z_loss, fixed
    )
    return found


def shares_of(batch: Batch, places: Tensor) -> Tensor:
    """Return float32 [places]: how much each of a batch's targets counts; those of all its parts add up to 1.

    places: int64, of the targets that are not IGNORE; on the CPU, as the batch is.
    """
    if batch.weights is None:
        each = 1 / max(1.0, float(len(places)) if batch.whole is None else batch.whole)
        return torch.full((len(places),), each)
    _check_weights(batch.weights, batch.targets)
    return _shares(batch.weights.cpu()[places], batch.whole)


def _check_weights(weights: Tensor, targets: Tensor) -> None:
    if weights.shape != targets.shape:
        raise ShapeError(f"weights: must be one for each target, {list(targets.shape)}, got {list(weights.shape)}")
    if weights.device.type != "cpu":
        return
    wrong = weights[~(torch.isfinite(weights) & (weights >= 0))]
    if wrong.numel():
        raise ShapeError(f"weights: must be finite and at least 0, got {float(wrong[0])}")


def _shares(weights: Tensor, whole: float | None) -> Tensor:
    """Return weights divided by their sum, or by `whole`; all 0 if there is nothing to share.

    The sum is float64, for any scale.
    """
    wide = weights.double()
    total = wide.sum() if whole is None else wide.new_tensor(whole)
    return torch.where(total > 0, wide / total, 0.0).to(torch.float32)


@dataclass(frozen=True)
class NextToken:
    """The objective of language modelling.

    Attributes:
        precision: "float32" or "bfloat16", of the matrix products.
        balance_loss: weight of the loss that evens the load of experts, where they have no correction. It is that of
            each part of a batch.
        z_loss: as for `next_token_losses`.
        total: sums over the workers that read other tokens of the same part.
    """

    precision: str = "float32"
    balance_loss: float = 0.0
    z_loss: float = 0.0
    total: Callable[[Tensor], Tensor] = lambda x: x

    def __call__(self, model: HybridLM, batch: Batch) -> Loss:
        """Return the mean nats per target of a batch."""
        dtype = getattr(torch, self.precision)
        low = dtype != torch.float32
        read = read_at(model, batch.tokens, batch.segments, self.precision)
        minimised, value = next_token_losses(
            read.hidden,
            with_adapter(model.head),
            batch.targets,
            dtype if low else None,
            batch.weights,
            whole=batch.whole,
            z_loss=self.z_loss,
        )
        return Loss(value, minimised + self.unevenness(model, read.loads, batch.share), read.loads)

    def unevenness(self, model: HybridLM, loads: Sequence[Load | None], share: float) -> Tensor | float:
        """The auxiliary loss that balances experts; 0 where there are none, or where they have a correction.

        share: of these tokens in the step; the losses of all its parts then sum to their mean.
        """
        blocks: list[Any] = list(model.blocks)
        found = [x for b, x in zip(blocks, loads, strict=True) if x is not None and b.mlp.correction is None]
        uneven = [Load(self.total(x.counts), x.scores * share).balance for x in found]
        return self.balance_loss * torch.stack(uneven).mean() if uneven else 0.0
