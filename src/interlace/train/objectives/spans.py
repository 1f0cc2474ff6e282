"""Distillation between different tokenizers: both say how likely the same stretches of text are.

A span is a shortest stretch of text at whose ends both tokenizations have a border. Its likelihood is the product of
those of its tokens. Source: Minixhofer et al., "Universal Cross-Tokenizer Distillation via Approximate Likelihood
Matching", arXiv 2503.20083; spans, and the two-outcome divergence of their likelihoods at a temperature.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, Batch
from interlace.data.tokenizer import Tokenizer
from interlace.layers.low_rank import with_adapter
from interlace.layers.moe import Load
from interlace.model.model import HybridLM
from interlace.ops.core.tables import on_device
from interlace.train.objectives.base import Loss, read_at
from interlace.train.objectives.distill import NUMBERS
from interlace.train.objectives.log_probs import token_log_probs
from interlace.train.objectives.next_token import shares_of

ALIGNED = "aligned"  # share of the targets that lie in spans
CUT = 3  # tokens at an end of a piece that may be a part of a character


@dataclass(frozen=True)
class Spans:
    """The spans of one piece of text, in both tokenizations.

    Attributes:
        ours: int64 [tokens], the span of each of the student's tokens; -1 for none.
        ids: the teacher's tokens.
        theirs: int64 [teacher's tokens], the span of each; -1 for none.
    """

    ours: np.ndarray
    ids: list[int]
    theirs: np.ndarray

    @property
    def count(self) -> int:
        """How many there are."""
        return int(max(self.ours.max(initial=-1), self.theirs.max(initial=-1))) + 1


class Aligner:
    """Finds spans of text in the tokenizations of a student and a teacher."""

    def __init__(self, student: Tokenizer, teacher: Tokenizer):
        """Measure the tokens of both."""
        self.student, self.teacher = student, teacher
        self._ours, self._theirs = student.byte_lengths().numpy(), teacher.byte_lengths().numpy()

    def spans_of(self, ids: Sequence[int]) -> Spans | None:
        """Return the spans of a piece of text; None if both do not write it as the same bytes.

        No span holds the first token of either side, which nothing foresees.
        """
        end = len(ids)
        while end and not self._ours[ids[end - 1]]:  # the end of the text
            end -= 1
        found = self._text(ids, end)
        if found is None:
            return None
        first, last, text = found
        plain = self.teacher.encode(text)
        begun = self.teacher.begun(plain)
        lead, other = len(begun) - len(plain), self._theirs[begun]
        if lead < len(other):
            other[lead] -= self.teacher.lead_bytes(plain)
        if other.sum() != len(text.encode()) or (other < 0).any():
            return None
        ends = np.cumsum(self._ours[list(ids[first:last])]), np.cumsum(other)
        shared = np.intersect1d(*ends)
        if len(shared) < 2:
            return None
        ours = np.full(len(ids), -1)
        ours[first:last] = np.searchsorted(shared, ends[0]) - 1  # -1 up to the first common border
        theirs = np.searchsorted(shared, ends[1]) - 1
        return Spans(ours, begun, theirs)

    def _text(self, ids: Sequence[int], end: int) -> tuple[int, int, str] | None:
        """Return the first and last token, and the text, of what is left without parts of characters at the ends."""
        for first, cut in itertools.product(range(CUT + 1), range(CUT + 1)):
            part = list(ids[first : end - cut])
            text = "".join(self.student.stream(part, after=part[:1]))
            if text and len(text.encode("utf-8", "replace")) == self._ours[part].sum() and "\ufffd" not in text:
                return first, end - cut, text
        return None


@dataclass(frozen=True)
class AcrossTokenizers:
    """The objective of a student whose teacher has another tokenizer.

    Attributes:
        teacher: on the student's device.
        aligner: of the data's tokenizer and the teacher's.
        soft: weight of the divergence; the rest is that of the next tokens.
        temperature: by which logarithms of likelihoods are divided.
        precision: "float32" or "bfloat16", of the matrix products.
        balance: see `NextToken.unevenness`.
    """

    teacher: HybridLM
    aligner: Aligner
    soft: float = 1.0
    temperature: float = 1.0
    precision: str = "float32"
    balance: Callable[[HybridLM, Sequence[Load | None], float], Tensor | float] = lambda *_: 0.0

    def __call__(self, model: HybridLM, batch: Batch) -> Loss:
        """Return the loss of a batch."""
        device, dtype = model.device, getattr(torch, self.precision)
        low = dtype != torch.float32
        read = read_at(model, batch.tokens, batch.segments, self.precision)
        targets = batch.targets.cpu()
        places = (targets != IGNORE).nonzero().squeeze(1)
        shares = on_device(shares_of(batch, places), device)
        head, kind = with_adapter(model.head), dtype if low else None
        goals = on_device(targets[places], device)
        likely = token_log_probs(read.hidden[on_device(places, device)], head, goals, kind)
        spans, theirs = self._teacher_says(batch, dtype if low else None)
        spans = spans[places]
        nats = -(shares * likely).sum()
        kept = (spans >= 0).nonzero().squeeze(1)
        index, there = on_device(spans[kept], device), on_device(kept, device)
        ours = likely.new_zeros(len(theirs)).index_add(0, index, likely[there])
        apart = two_outcomes(theirs.to(likely.dtype) / self.temperature, ours / self.temperature)
        counts = likely.new_zeros(len(theirs)).index_add(0, index, shares[there])  # a span counts as its tokens do
        divergence = (counts * apart).sum()
        minimised = (1 - self.soft) * nats + self.soft * self.temperature**2 * divergence
        more = dict(zip(NUMBERS, (nats.detach(), divergence.detach()), strict=True)) | {ALIGNED: shares[there].sum()}
        value = minimised.detach().float()
        return Loss(value, minimised + self.balance(model, read.loads, batch.share), read.loads, more)

    @torch.no_grad()
    def _teacher_says(self, batch: Batch, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Return the span of each row's target, int64 [total], -1 for none; and log-likelihoods [spans]."""
        found = torch.full((batch.segments.total,), -1)
        pieces, spans, count = [], [], 0
        tokens, targets = batch.tokens.cpu(), batch.targets.cpu()
        for begin, end in batch.segments.spans():
            more = int(targets[end - 1]) != IGNORE
            ids = [*tokens[begin:end].tolist(), *([int(targets[end - 1])] if more else [])]
            if (one := self.aligner.spans_of(ids)) is None:
                continue
            ours = one.ours[1:]
            found[begin : begin + len(ours)] = torch.from_numpy(np.where(ours >= 0, ours + count, -1))
            pieces.append(one.ids)
            spans.append(np.where(one.theirs >= 0, one.theirs + count, -1))
            count += one.count
        device = self.teacher.device
        if not count:
            return found, torch.zeros(0, device=device)
        flat = torch.tensor([i for ids in pieces for i in ids], device=device)
        segments = Segments.from_lengths([len(ids) for ids in pieces])
        hidden = read_at(self.teacher, flat, segments, self.precision).hidden
        belongs = torch.from_numpy(np.concatenate(spans)).to(device)
        rows = (belongs >= 0).nonzero().squeeze(1)
        likely = token_log_probs(hidden[rows - 1], with_adapter(self.teacher.head), flat[rows], dtype)
        return found, likely.new_zeros(count).index_add(0, belongs[rows], likely)


def two_outcomes(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL of "this span" against "another", [spans], from logarithms of the span's likelihood."""
    p = teacher.exp()
    return p * (teacher - student) + (1 - p) * (_others(teacher) - _others(student))


def _others(likely: Tensor) -> Tensor:
    """Return log(1 - e^x) for x < 0; a span that is certain counts as one that is nearly so."""
    x = likely.clamp(max=-torch.finfo(likely.dtype).eps)
    return torch.where(x > -0.7, torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))
