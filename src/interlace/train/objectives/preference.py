"""Preference objectives: make the better of two answers to a prompt likelier than the worse one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from interlace.base.errors import Failure
from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, SEGMENTS_OF_A_PAIR, Batch
from interlace.layers.low_rank import with_adapter
from interlace.layers.moe import Load
from interlace.model.model import HybridLM
from interlace.ops.core.tables import on_device
from interlace.train.objectives.base import Loss
from interlace.train.objectives.log_probs import token_log_probs
from interlace.train.recipe import ObjectiveSettings


class PairLogProbs(NamedTuple):
    """What a model says of pairs of answers.

    Attributes:
        sums: float64 [pairs, 2], log-probability of the better and of the worse answer, given the prompt.
        tokens: float64 [pairs, 2], of each answer, those that an assistant wrote.
        loads: of each block's experts.
    """

    sums: Tensor
    tokens: Tensor
    loads: list[Any]


def pair_log_probs(
    model: HybridLM, batch: Batch, precision: str = "float32", share_prompt: bool = True
) -> PairLogProbs:
    """Return the log-probabilities of a batch's answers.

    Args:
        batch: of pairs.
        precision: "float32" or "bfloat16", of the matrix products.
        share_prompt: whether a prompt is read once, and both answers go on from its state. A pass that keeps no state
            (compiled, or with recomputation) reads it before each answer all the same.
    """
    device, low = model.device, precision != "float32"
    lengths = torch.diff(batch.segments.offsets).long().view(-1, SEGMENTS_OF_A_PAIR)
    layout = _shared if _is_shared(model, share_prompt) else _apart
    with torch.autocast(device.type, dtype=getattr(torch, precision)) if low else nullcontext():
        hidden, places, loads = layout(model, batch, lengths)
    pairs = lengths.shape[0]
    answers = _answer_tokens(lengths)
    targets = batch.targets.cpu()[answers]
    learnt = (targets != IGNORE).nonzero().squeeze(1)
    rows = torch.repeat_interleave(torch.arange(2 * pairs), lengths[:, 1:].flatten())[learnt]
    dtype = getattr(torch, precision) if low else None
    read = hidden[on_device(places[learnt], device)]
    found = token_log_probs(read, with_adapter(model.head), on_device(targets[learnt], device), dtype).double()
    sums = found.new_zeros(2 * pairs).index_add(0, on_device(rows, device), found)
    tokens = torch.bincount(rows, minlength=2 * pairs).double()
    return PairLogProbs(sums.view(-1, 2), on_device(tokens, device).view(-1, 2), loads)


def _is_shared(model: HybridLM, share_prompt: bool) -> bool:
    """Return whether prompts are read once: a pass that is compiled, or computed again, keeps no state."""
    return share_prompt and not (model.through and model.training and torch.is_grad_enabled())


def _answer_tokens(lengths: Tensor) -> Tensor:
    """Return the places of the answers' tokens in a batch whose pairs have these lengths, in order."""
    kinds = torch.tensor([False, True, True]).repeat(lengths.shape[0])
    return torch.repeat_interleave(kinds, lengths.flatten()).nonzero().squeeze(1)


def _shared(model: HybridLM, batch: Batch, lengths: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
    """Read prompts, then both answers from their states; return hidden [rows, D], and before which row each token is.

    The second result says, for each token of the answers, in which row of hidden its prediction is.
    """
    device, pairs = model.device, lengths.shape[0]
    answers = _answer_tokens(lengths)
    is_prompt = torch.ones(batch.segments.total, dtype=torch.bool)
    is_prompt[answers] = False
    prompts = is_prompt.nonzero().squeeze(1)
    tokens = batch.tokens
    first = model.read(_taken(tokens, prompts, device), Segments.from_lengths(lengths[:, 0].tolist()))
    state = first.state.select([pair for pair in range(pairs) for _ in range(2)])
    sizes = lengths[:, 1:].flatten()
    second = model.read(_taken(tokens, answers, device), Segments.from_lengths(sizes.tolist()), state)
    last = lengths[:, 0].cumsum(0) - 1
    before = torch.arange(len(answers)) - 1 + pairs
    before[sizes.cumsum(0) - sizes] = torch.arange(2 * pairs) // 2
    hidden = torch.cat((first.hidden[on_device(last, device)], second.hidden))
    return (
        hidden,
        before,
        [_joined(a, b, len(prompts), len(answers)) for a, b in zip(first.loads, second.loads, strict=True)],
    )


def _apart(model: HybridLM, batch: Batch, lengths: Tensor) -> tuple[Tensor, Tensor, list[Any]]:
    """Read a prompt before each answer; the results are those of `_shared`."""
    offsets = batch.segments.offsets.long().tolist()
    pieces, places, sizes, total = [], [], [], 0
    for pair, (prompt, *answers) in enumerate(lengths.tolist()):
        start = offsets[SEGMENTS_OF_A_PAIR * pair]
        for answer, begin in zip(answers, offsets[SEGMENTS_OF_A_PAIR * pair + 1 :], strict=False):
            pieces += [torch.arange(start, start + prompt), torch.arange(begin, begin + answer)]
            places.append(torch.arange(answer) + total + prompt - 1)
            sizes.append(prompt + answer)
            total += prompt + answer
    read = model.read(_taken(batch.tokens, torch.cat(pieces), model.device), Segments.from_lengths(sizes))
    return read.hidden, torch.cat(places), read.loads


def _taken(tokens: Tensor, places: Tensor, device: torch.device) -> Tensor:
    return on_device(tokens[on_device(places, tokens.device)], device)


def _joined(one: Load | None, other: Load | None, prompts: int, answers: int) -> Load | None:
    """Return the load of two passes of so many tokens; a prompt counts for each of its answers, as if read twice."""
    if one is None or other is None:
        return None
    scores = (one.scores * 2 * prompts + other.scores * answers) / (2 * prompts + answers)
    return Load(2 * one.counts + other.counts, scores)


def preference_losses(
    policy: PairLogProbs, reference: Tensor | None, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair, and by how much the better answer is preferred; both float64 [pairs].

    With C and R the log-ratios of the better and the worse answer to the reference, and c and r their tokens:
    "dpo": -log sigmoid(beta (C - R)), Rafailov et al., arXiv 2305.18290, equation 7; with label smoothing as in
    Mitchell's "conservative DPO". "dpo_norm": the same of C / c - R / r (Lambert et al., "Tulu 3", arXiv 2411.15124,
    section 5). "ipo": (C / c - R / r - 1 / (2 beta))^2, Azar et al., arXiv 2310.12036, equation 17, with ratios per
    token, as `trl` has it. "simpo": "dpo_norm" without a reference, beta (C / c - R / r) - margin; Meng et al., arXiv
    2405.14734, equation 6.

    Args:
        reference: float64 [pairs, 2], log-probabilities under the reference; None for "simpo".
    """
    ratios = policy.sums if reference is None else policy.sums - reference
    if settings.kind != "dpo":
        ratios = ratios / policy.tokens
    difference = ratios[:, 0] - ratios[:, 1]
    if settings.kind == "ipo":
        return (difference - 1 / (2 * settings.beta)).square(), settings.beta * difference
    preferred = settings.beta * difference
    x = preferred - settings.margin
    smooth = settings.label_smoothing
    return -(1 - smooth) * logsigmoid(x) - smooth * logsigmoid(-x), preferred


@dataclass(frozen=True)
class Preference:
    """The objective of training on pairs of answers.

    Attributes:
        settings: the recipe's [objective].
        reference: float64 [pairs of the split, 2], log-probabilities under the reference; None where there is none.
        precision: "float32" or "bfloat16", of the matrix products.
        balance: the loss that evens the load of experts: see `NextToken.unevenness`.
    """

    settings: ObjectiveSettings
    reference: Tensor | None = None
    precision: str = "float32"
    balance: Callable[[HybridLM, list[Any], float], Tensor | float] = lambda *_: 0.0

    def __call__(self, model: HybridLM, batch: Batch) -> Loss:
        """Return the mean loss of the pairs of a batch, with how often and by how much the better one is preferred."""
        assert batch.pairs is not None
        if not len(batch.pairs):
            return self._nothing(model, batch)
        policy = pair_log_probs(model, batch, self.precision, self.settings.share_prompt)
        known = None
        if self.reference is not None and self.settings.has_reference:
            found = self.reference[batch.pairs.cpu()]
            if bool(found.isnan().any()):
                raise Failure("reference/: holds nothing of a pair of this batch; remove the folder, and start again")
            known = on_device(found, model.device)
        losses, preferred = preference_losses(policy, known, self.settings)
        each = policy.sums / policy.tokens
        if self.settings.sft:
            losses = losses - self.settings.sft * each[:, 0]
        whole = batch.whole or batch.counted
        value = losses.sum() / whole
        shown = (preferred > 0).double(), preferred, -each[:, 0], -each[:, 1]
        more = {n: (x.detach().sum() / whole).float() for n, x in zip(NUMBERS, shown, strict=True)}
        minimised = value + self.balance(model, policy.loads, batch.share)
        return Loss(value.detach().float(), minimised, policy.loads, more)

    def _nothing(self, model: HybridLM, batch: Batch) -> Loss:
        """Return the loss of a part of a batch that is left over; the model is read as often as by other workers."""
        tokens = on_device(batch.tokens, model.device)
        low = self.precision != "float32"
        kind = getattr(torch, self.precision)
        with torch.autocast(model.device.type, dtype=kind) if low else nullcontext():
            read = model.read(tokens, batch.segments)
            hidden = read.hidden.sum()
            if _is_shared(model, self.settings.share_prompt):
                hidden = hidden + model.read(tokens, batch.segments, read.state).hidden.sum()
        nothing = (hidden + with_adapter(model.head).sum()).float() * 0.0
        loads = [x and Load(x.counts * 0, x.scores) for x in read.loads]
        return Loss(nothing.detach(), nothing, loads, dict.fromkeys(NUMBERS, nothing.detach()))


NUMBERS = ("preferred", "margin", "chosen_nats", "rejected_nats")  # that a step logs beside its loss
