"""Distillation in the strict sense: a student learns its teacher's distribution over the next token.

A block of rows at a time, forward and backward: logits of all rows are never in memory, and a block has fewer rows
where the vocabulary is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from interlace.data.batches import IGNORE, Batch
from interlace.layers.low_rank import with_adapter
from interlace.layers.moe import Load
from interlace.model.model import HybridLM
from interlace.ops.core.tables import on_device
from interlace.train.objectives.base import Loss, read_at
from interlace.train.objectives.divergence import divergence
from interlace.train.objectives.next_token import block_rows, shares_of
from interlace.train.recipe import Divergence

SHARE = 4  # of a block of `next_token`: a dozen tensors of a block's size live at a time
NUMBERS = ("next_token_nats", "divergence")  # that a step logs beside its loss
HIDDEN, PROJECTION = "hidden_distance", "objective.projection"


class Taught(Protocol):
    """What a teacher says of the rows of a batch."""

    def compare(self, rows: slice, student: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's divergence, [rows], and its gradient with respect to the student's logits, [rows, n].

        student: log-probabilities [rows, n] at the teacher's temperature, of the n tokens that both know.
        """


@dataclass(frozen=True)
class Exact:
    """The whole distribution, from what the teacher's head reads.

    Attributes:
        hidden: [rows, D].
        head: [vocabulary, D].
        temperature: of the softmax.
        kind, mixture: of the divergence.
    """

    hidden: Tensor
    head: Tensor
    temperature: float = 1.0
    kind: Divergence = "forward_kl"
    mixture: float = 0.5

    def compare(self, rows: slice, student: Tensor) -> tuple[Tensor, Tensor]:
        """See `Taught.compare`."""
        logits = (self.hidden[rows] @ self.head[: student.shape[1]].T).to(student.dtype)
        return divergence(self.kind, (logits / self.temperature).log_softmax(-1), student, self.mixture)


@dataclass(frozen=True)
class Drawn:
    """Tokens that were drawn from the teacher: unbiased, of KL(teacher | student) less the teacher's own entropy.

    Attributes:
        ids: int64 [rows, m].
        shares: [rows, m], of a row's draws; they add up to 1, and 0 stands for no token.
    """

    ids: Tensor
    shares: Tensor

    def compare(self, rows: slice, student: Tensor) -> tuple[Tensor, Tensor]:
        """See `Taught.compare`."""
        ids, shares = self.ids[rows], self.shares[rows].to(student.dtype)
        likely = student.gather(1, ids).clamp(min=torch.finfo(student.dtype).min)  # 0 times -inf is NaN
        return -(shares * likely).sum(-1), student.exp().scatter_add_(1, ids, -shares)


@dataclass(frozen=True)
class Likeliest:
    """The likeliest tokens, and the rest as one: KL of the two distributions over these and the rest.

    Attributes:
        ids: int64 [rows, k].
        log_probs: [rows, k], the teacher's.
    """

    ids: Tensor
    log_probs: Tensor

    def compare(self, rows: slice, student: Tensor) -> tuple[Tensor, Tensor]:
        """See `Taught.compare`."""
        ids, teacher = self.ids[rows], self.log_probs[rows].to(student.dtype)
        tiny = torch.finfo(student.dtype).tiny
        known, own = student.gather(1, ids), student.exp()
        rest = (1 - teacher.exp().sum(-1)).clamp(min=0)
        others = student.scatter(1, ids, -torch.inf).logsumexp(-1)  # what the student gives to the rest
        value = (teacher.exp() * (teacher - known)).sum(-1)
        value = value + torch.where(rest > 0, rest * (rest.clamp(min=tiny).log() - others), 0.0)
        # d/dz of -sum_k p_k log q_k - p_rest log q_rest: q - p within, and q - p_rest q / q_rest in the rest.
        ratio = torch.where(rest > 0, rest.clamp(min=tiny).log() - others, -torch.inf)
        slope = own - (student + ratio[:, None]).exp()
        return value, slope.scatter(1, ids, own.gather(1, ids) - teacher.exp())


class _Distilled(torch.autograd.Function):
    """Sum over rows of share ((1 - weight) cross-entropy + weight T^2 divergence), and of both parts alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shares: Tensor,
        taught: Taught,
        mixed: tuple[float, float],
        tokens: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        soft, temperature = mixed
        cast, wide = weight.to(dtype), torch.promote_types(dtype, torch.float32)
        d_hidden, fixed = torch.empty_like(hidden, dtype=dtype), not weight.requires_grad
        d_weight = None if fixed else torch.zeros_like(weight, dtype=wide)
        sums = hidden.new_zeros(2, dtype=wide)
        size = max(1, block_rows(hidden.device, weight.shape[0]) // SHARE)
        for start in range(0, hidden.shape[0], size):
            rows = slice(start, start + size)
            h, share, goal = hidden[rows].to(dtype), shares[rows].to(wide), targets[rows, None]
            logits = (h @ cast.T).to(wide)
            likely = logits.log_softmax(-1)
            nats = -likely.gather(1, goal).squeeze(1)
            student = likely if temperature == 1 and tokens == likely.shape[1] else logits[:, :tokens] / temperature
            apart, slope = taught.compare(rows, student if student is likely else student.log_softmax(-1))
            sums += torch.stack(((share * nats).sum(), (share * apart.to(wide)).sum()))
            d_logits = likely.exp_() if soft < 1 else torch.zeros_like(logits)
            if soft < 1:
                d_logits.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=wide)).mul_((1 - soft) * share[:, None])
            d_logits[:, :tokens] += slope.mul_(soft * temperature * share[:, None])
            low = d_logits.to(dtype)
            torch.mm(low, cast, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += low.T @ h
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(sums)
        return (1 - soft) * sums[0] + soft * temperature**2 * sums[1], sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        d_weight = None if d_weight is None else (d_weight * d_loss).to(ctx.dtypes[1])
        return (d_hidden * d_loss).to(ctx.dtypes[0]), d_weight, None, None, None, None, None, None


def distilled_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shares: Tensor,
    taught: Taught,
    *,
    soft: float = 1.0,
    temperature: float = 1.0,
    tokens: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss to be minimised, and float32 [2]: the cross-entropy and the divergence, in nats per token.

    The divergence counts times temperature squared, so that its gradients do not shrink with the temperature; Hinton
    et al., arXiv 1503.02531, section 2.

    Args:
        hidden: [rows, D], what the student's head reads.
        weight: [vocabulary, D], its head.
        targets: int64 [rows], the next tokens.
        shares: float32 [rows], how much each row counts.
        taught: what the teacher says of these rows.
        soft: the divergence's weight; the rest is that of the cross-entropy.
        temperature: of both softmaxes in the divergence.
        tokens: that both know, the first of the vocabulary: the others are padding. None for all.
        dtype: of the matrix products; None for hidden's.
    """
    found: tuple[Tensor, Tensor] = _Distilled.apply(
        hidden,
        weight,
        targets,
        shares,
        taught,
        (soft, temperature),
        tokens or weight.shape[0],
        dtype or hidden.dtype,
    )
    return found


@dataclass(frozen=True)
class Distill:
    """The objective of learning a teacher's distribution.

    Attributes:
        teacher: given a batch, and the places of its rows that are learnt, returns what it says of these.
        soft, temperature, tokens: as for `distilled_loss`.
        precision: "float32" or "bfloat16", of the matrix products.
        balance: the loss that evens the load of experts: see `NextToken.unevenness`.
        hidden: weight of the squared distance of hidden states, as a share of the teacher's squared length.
        projection: [teacher's width, student's], learnt, from the student's hidden states; None where `hidden` is 0.
    """

    teacher: Callable[[Batch, Tensor], Taught]
    soft: float = 1.0
    temperature: float = 1.0
    tokens: int | None = None
    precision: str = "float32"
    balance: Callable[[HybridLM, Sequence[Load | None], float], Tensor | float] = lambda *_: 0.0
    hidden: float = 0.0
    projection: nn.Parameter | None = None

    @property
    def beside(self) -> dict[str, nn.Parameter]:
        """What is trained beside the model, by name."""
        return {} if self.projection is None else {PROJECTION: self.projection}

    def __call__(self, model: HybridLM, batch: Batch) -> Loss:
        """Return the loss of a batch."""
        device, dtype = model.device, getattr(torch, self.precision)
        low = dtype != torch.float32
        read = read_at(model, batch.tokens, batch.segments, self.precision)
        targets = batch.targets.cpu()
        places = (targets != IGNORE).nonzero().squeeze(1)
        shares = shares_of(batch, places)
        there, shares = on_device(places, device), on_device(shares, device)
        hidden, taught = read.hidden[there], self.teacher(batch, there)
        minimised, sums = distilled_loss(
            hidden,
            with_adapter(model.head),
            on_device(targets[places], device),
            shares,
            taught,
            soft=self.soft,
            temperature=self.temperature,
            tokens=self.tokens,
            dtype=dtype if low else None,
        )
        more = dict(zip(NUMBERS, sums.unbind(), strict=True))
        if self.projection is not None:
            assert isinstance(taught, Exact)
            theirs = taught.hidden.float()
            apart = (hidden.float() @ self.projection.T - theirs).square().sum(-1) / theirs.square().sum(-1)
            distance = (shares * apart).sum()
            minimised, more[HIDDEN] = minimised + self.hidden * distance, distance.detach()
        value = minimised.detach().float()
        return Loss(value, minimised + self.balance(model, read.loads, batch.share), read.loads, more)


def projection_of(student: int, teacher: int, seed: int, device: torch.device) -> nn.Parameter:
    """Return the projection of hidden states to another width that training begins with; it keeps their lengths."""
    draw = torch.Generator().manual_seed(seed)
    return nn.Parameter((torch.randn(teacher, student, generator=draw) / student**0.5).to(device))


@dataclass(frozen=True)
class Live:
    """A teacher in this process.

    Attributes:
        model: on the student's device; it is not changed.
        precision: of its matrix products.
        temperature, kind, mixture: as for `Exact`.
    """

    model: HybridLM
    precision: str = "float32"
    temperature: float = 1.0
    kind: Divergence = "forward_kl"
    mixture: float = 0.5

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return self.model.config.width

    @torch.no_grad()
    def __call__(self, batch: Batch, places: Tensor) -> Taught:
        """Read a batch."""
        hidden = read_at(self.model, batch.tokens, batch.segments, self.precision).hidden[places]
        head = with_adapter(self.model.head).detach()
        if self.precision != "float32":
            hidden, head = (x.to(getattr(torch, self.precision)) for x in (hidden, head))
        return Exact(hidden, head, self.temperature, self.kind, self.mixture)
