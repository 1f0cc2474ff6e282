"""How far a student's distribution over the next token is from its teacher's, and the gradient with respect to logits.

All in logarithms: probabilities that underflow give neither NaN nor a gradient that is lost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interlace.train.recipe import Divergence

LEAST = -1e4  # logarithm of a probability: a teacher that excludes a token makes no loss infinite


def divergence(kind: Divergence, teacher: Tensor, student: Tensor, mixture: float = 0.5) -> tuple[Tensor, Tensor]:
    """Return each row's divergence in nats, [rows], and its gradient with respect to the student's logits, [rows, V].

    With p the teacher and q the student: "forward_kl" KL(p | q), Hinton et al., arXiv 1503.02531; "reverse_kl"
    KL(q | p), Gu et al., arXiv 2306.08543; "jensen_shannon" b KL(p | m) + (1 - b) KL(q | m) with m = b p + (1 - b) q,
    Agarwal et al., arXiv 2306.13649; "skew_kl" KL(p | b p + (1 - b) q) and "skew_reverse_kl" KL(q | (1 - b) p + b q),
    Ko et al., arXiv 2402.03898; "total_variation" half the sum of |p - q|, Wen et al., arXiv 2307.15190.

    Args:
        teacher, student: log-probabilities [rows, V] of one dtype; what is below LEAST counts as LEAST.
        mixture: b, of the kinds that are of a mixture.
    """
    teacher, student = teacher.clamp(min=LEAST), student.clamp(min=LEAST)
    q = student.exp()
    if kind == "forward_kl":
        p = teacher.exp()
        return _expected(p, teacher, student), q - p
    if kind == "total_variation":
        p = teacher.exp()
        alike = (p - q).abs() <= 100 * torch.finfo(q.dtype).eps * (p + q)  # the sign is that of rounding
        return (p - q).abs().sum(-1) / 2, _through_softmax(q, torch.where(alike, 0.0, (q - p).sign() / 2))
    if kind == "reverse_kl":
        return _expected(q, student, teacher), _through_softmax(q, _finite(student - teacher, q))
    p = teacher.exp()
    if kind == "jensen_shannon":
        middle = _mixed(teacher, mixture, student)
        value = mixture * _expected(p, teacher, middle) + (1 - mixture) * _expected(q, student, middle)
        return value, _through_softmax(q, (1 - mixture) * _finite(student - middle, q))
    if kind == "skew_kl":
        middle = _mixed(teacher, mixture, student)
        slope = -(1 - mixture) * (teacher - middle).exp()
        return _expected(p, teacher, middle), _through_softmax(q, _finite(slope, q))
    middle = _mixed(teacher, 1 - mixture, student)
    slope = (student - middle) - mixture * (student - middle).exp()
    return _expected(q, student, middle), _through_softmax(q, _finite(slope, q))


def _mixed(one: Tensor, share: float, other: Tensor) -> Tensor:
    """Return log(share e^one + (1 - share) e^other)."""
    return torch.logaddexp(one + math.log(share), other + math.log1p(-share))


def _expected(weights: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of weights (one - other), [rows]; what has no weight counts nothing."""
    return (weights * _finite(one - other, weights)).sum(-1)


def _finite(x: Tensor, weights: Tensor) -> Tensor:
    return torch.where(weights > 0, x, 0.0)


def _through_softmax(q: Tensor, slope: Tensor) -> Tensor:
    """Return the gradient with respect to logits, given that with respect to the probabilities q."""
    return q * (slope - (q * slope).sum(-1, keepdim=True))
