"""Write answers to many prompts at once, until each ends or a stop string appears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interlace.data.tokenizer import Tokenizer
from interlace.generation.decode import Continuation, decode
from interlace.generation.prompts import check_fits, prompt_tokens, seeded
from interlace.generation.sampling import Sampling
from interlace.generation.stops import Stops, checked_stops
from interlace.model.model import HybridLM


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt.

    Attributes:
        text: without the stop string that ended it, and all after it.
        tokens: how many were made.
        ended: whether it came to an end by itself, or by a stop string; else it had all the tokens it may have.
    """

    text: str
    tokens: int
    ended: bool


def write_answers(
    model: HybridLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int],
    stops: Sequence[Sequence[str]],
    ends: Sequence[int] = (),
    begin_afresh: bool = False,
) -> list[Answer]:
    """Answer every prompt; each answer is drawn from its own seed, as if it were alone.

    Args:
        stops: of each prompt, the strings that end its answer.
        ends: tokens that end an answer beside the model's own.
        begin_afresh: whether answers are written as texts by themselves, of which some tokenizers leave out a blank at
            the start; else as what continues their prompt.

    Raises:
        PromptTooLong: a prompt and its max_tokens pass the model's limit.
    """
    tokenizer: Tokenizer = model.tokenizer
    rows, texts = [], []
    for ids, some in zip(prompts, stops, strict=True):
        texts.append(_Text(tokenizer, checked_stops(some), () if begin_afresh else ids))
    for ids, most, seed in zip(prompts, max_tokens, seeds, strict=True):
        check_fits(model, len(ids), most)
        rows.append(Continuation(prompt_tokens(model, ids), most, sampling, seeded(seed)))
    for index, token in decode(model, rows, ends):
        if texts[index].push(token):
            rows[index].ended = True
    return [Answer(text.cut(), len(row.made), row.ended) for text, row in zip(texts, rows, strict=True)]


class _Text:
    """The text of an answer as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], after: Sequence[int]):
        self._tokenizer, self._stops, self._after, self._made = tokenizer, stops, after, list[int]()
        self._tail = max((len(stop.encode()) for stop in stops), default=0) + 2

    def push(self, token: int) -> bool:
        """Take a token; return whether the text holds a stop string now, special tokens written out."""
        self._made.append(token)
        if not self._stops:
            return False
        recent = self._made[-self._tail :]  # a token is a byte at least
        texts = self._tokenizer.decode(recent), self._tokenizer.fast.decode(recent, skip_special_tokens=False)
        return any(stop in text for stop in self._stops for text in texts)

    def cut(self) -> str:
        """Return the text before the first stop string."""
        return "".join(Stops(self._tokenizer, self._stops, self._after).cut(self._made))
