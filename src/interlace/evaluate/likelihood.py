"""How likely a model finds given continuations of prompts: ragged, and a prompt is read once for all of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.data.tokenizer import Tokenizer
from interlace.generation.prefill import PREFILL, read_prompts
from interlace.model.model import HybridLM
from interlace.model.state import ModelState

BLOCK = 1024  # tokens whose logits exist at a time
COPIED_BYTES = 1 << 30  # of states that continuations start from, at a time


class Likelihood(NamedTuple):
    """A continuation as a model finds it.

    Attributes:
        nats: log-probability, given the prompt.
        greedy: whether each of its tokens is the likeliest one.
    """

    nats: float
    greedy: bool


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of what continues it, as `lm_eval` cuts them.

    Blanks at the end of the context belong to the continuation. An empty context is the token that begins a text, or
    else the one that ends it.
    """
    kept = context.rstrip()
    if not kept and not tokenizer.begin:
        ids = tokenizer.encode_text(context + continuation)
        first = [tokenizer.eos] if tokenizer.eos is not None else []
        return (first, ids) if first else (ids[:1], ids[1:])
    before = tokenizer.encode_text(kept)
    whole = tokenizer.encode_text(kept + context[len(kept) :] + continuation)
    return before, whole[len(before) :]


@torch.inference_mode()
def likelihoods(
    model: HybridLM, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[Likelihood]]:
    """Return the likelihood of each continuation of each prompt.

    Args:
        prompts: ids, at least one each.
        continuations: of each prompt, ids of each continuation, at least one each.
    """
    logits, state = _read_prompts(model, prompts)
    firsts = [answer[0] for answers in continuations for answer in answers]
    row_of = [row for row, answers in enumerate(continuations) for _ in answers]
    nats, greedy = _scored(logits[row_of], torch.tensor(firsts, device=model.device))
    found = [[n, g] for n, g in zip(nats, greedy, strict=True)]
    longer = [(i, answer) for i, answer in enumerate(a for some in continuations for a in some) if len(answer) > 1]
    most = max(1, COPIED_BYTES // max(1, state.nbytes // state.count))
    start = 0
    while start < len(longer):
        some = longer[start : start + most]
        tokens = 0
        keep = next((k for k, (_, a) in enumerate(some) if k and (tokens := tokens + len(a)) > PREFILL), len(some))
        some = some[:keep]
        start += keep
        rest = [torch.tensor(answer) for _, answer in some]
        read = torch.cat([answer[:-1] for answer in rest]).to(model.device)
        segments = Segments.from_lengths([len(answer) - 1 for answer in rest])
        hidden, _, _ = model.hidden(read, segments, state.select([row_of[i] for i, _ in some]))
        own, best = _scored_hidden(model, hidden, torch.cat([answer[1:] for answer in rest]))
        place = 0
        for (i, answer), _ in zip(some, rest, strict=True):
            end = place + len(answer) - 1
            found[i][0] += sum(own[place:end])
            found[i][1] = found[i][1] and all(best[place:end])
            place = end
    each = iter([Likelihood(n, bool(g)) for n, g in found])
    return [[next(each) for _ in answers] for answers in continuations]


def _read_prompts(model: HybridLM, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ModelState]:
    """Return logits after each prompt [N, vocabulary], and the state."""
    given = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    reserve = max(len(prompt) for prompt in prompts)
    return read_prompts(model, given, reserve)


def _scored(logits: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    log_p = torch.log_softmax(logits.float(), dim=-1)
    own = log_p.gather(1, targets[:, None]).squeeze(1)
    return own.tolist(), (log_p.argmax(-1) == targets).tolist()


def _scored_hidden(model: HybridLM, hidden: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """Return the log-probability of each target, and whether it is the likeliest, a block of rows at a time."""
    nats, greedy = list[float](), list[bool]()
    for rows in torch.arange(hidden.shape[0]).split(BLOCK):
        own, best = _scored(model.logits(hidden[rows.to(hidden.device)]), targets[rows].to(hidden.device))
        nats, greedy = nats + own, greedy + best
    return nats, greedy


@torch.inference_mode()
def text_nats(model: HybridLM, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return -log p of each token of each text after its first, given all before it."""
    tokens = torch.tensor([i for text in texts for i in text], device=model.device)
    segments = Segments.from_lengths([len(text) for text in texts])
    hidden, _, _ = model.hidden(tokens, segments)
    nats, _ = _scored_hidden(model, hidden, tokens.roll(-1).cpu())
    found, place = [], 0
    for text in texts:
        found.append([-n for n in nats[place : place + len(text) - 1]])
        place += len(text)
    return found
