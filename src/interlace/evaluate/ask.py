"""Put the items of a task to a model: prompts become ids, choices are scored, answers are written and judged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from interlace.base.errors import ConfigError, PromptTooLong
from interlace.data.chat import ChatTemplate
from interlace.data.tokenizer import Tokenizer
from interlace.evaluate.judge import Judge
from interlace.evaluate.likelihood import encode_pair, likelihoods
from interlace.evaluate.task import NORMALISATIONS, Item, Task
from interlace.evaluate.write import write_answers
from interlace.generation.conversation import end_tokens
from interlace.generation.sampling import Sampling
from interlace.model.model import HybridLM

TOKENS = 16_384  # of prompts that are read together
RESERVED = 1 << 17  # positions that their caches have together: each row has as many as the longest
ROWS = 64  # answers that are written together

Row = dict[str, Any]
"""What is kept of an item: its number, what was asked, what came of it, and its score."""


@dataclass(frozen=True)
class Asked:
    """An item as a model reads it.

    Attributes:
        text: the whole prompt.
        prompt: its ids.
        choices: ids of each choice after the prompt.
        more: the most tokens that follow the prompt.
        alone: of each choice, (ids before it, its own) where nothing was asked; none unless they are scored too.
    """

    item: Item
    text: str
    prompt: list[int]
    choices: list[list[int]]
    more: int
    alone: list[tuple[list[int], list[int]]]

    @property
    def tokens(self) -> int:
        """How many ids are read."""
        return len(self.prompt) + sum(map(len, self.choices))

    @property
    def reserve(self) -> int:
        """How many positions its caches have."""
        return len(self.prompt) + self.more


class Questions:
    """The items of a task in batches, which depend on the task and the tokenizer alone."""

    def __init__(self, task: Task, model: HybridLM):
        """Encode all items.

        Raises:
            ConfigError: the model has no tokenizer, or no chat template can write an item.
            PromptTooLong: an item does not fit the model's limit, and the task does not say to cut it.
        """
        if model.tokenizer is None:
            raise ConfigError("model: has no tokenizer, so that it cannot be asked")
        self.task, self.model = task, model
        self.ends: tuple[int, ...] = ()
        if task.settings.chat:
            with closing(model.tokenizer.chat()) as chat:
                self.ends = end_tokens(model.tokenizer, chat)
                self.asked = [self._asked(item, chat) for item in task.items]
        else:
            self.asked = [self._asked(item, None) for item in task.items]
        self.batches = list(self._batches())

    def _asked(self, item: Item, chat: ChatTemplate | None) -> Asked:
        settings, delimiter = self.task.settings, self.task.settings.delimiter
        tokenizer: Tokenizer = self.model.tokenizer
        if chat is None:
            before = [f"{asked}{delimiter}{answered}" for asked, answered in item.turns]
            text = settings.separator.join([*before, item.prompt])
        else:
            turns = [{"role": "system", "content": settings.system}] if settings.system else []
            for asked, answered in item.turns:
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            text, delimiter = chat.render([*turns, {"role": "user", "content": item.prompt}], True), ""
        if not item.choices:
            ids = tokenizer.encode(text) if chat is not None else tokenizer.encode_text(text)
            return Asked(
                item, text, self._fitted(ids or self._nothing(), settings.max_tokens, item), [], settings.max_tokens, []
            )
        if chat is None:
            pairs = [encode_pair(tokenizer, text, delimiter + choice) for choice in item.choices]
        else:  # as training cuts them
            pairs = [(ids[0], ids[1]) for ids in tokenizer.encode_pieces([[text, choice] for choice in item.choices])]
        if wrong := next((c for c, (_, own) in zip(item.choices, pairs, strict=True) if not own), None):
            raise ConfigError(f"{self.task.name}: item {item.number}: the choice {wrong!r:.60} has no token of its own")
        alone = [encode_pair(tokenizer, "", delimiter + choice) for choice in item.choices if self._scores_alone]
        if any(not (before and own) for before, own in alone):
            raise ConfigError(
                f'{self.task.name}: normalise: "unconditional" reads a choice after the token that begins or ends a '
                "text, and the tokenizer names neither; choose another"
            )
        more = max(len(own) for _, own in pairs)
        prompt = self._fitted(pairs[0][0] or self._nothing(), more, item)
        return Asked(item, text, prompt, [own for _, own in pairs], more, alone)

    @property
    def _scores_alone(self) -> bool:
        return self.task.settings.normalise == "unconditional"

    def _nothing(self) -> list[int]:
        """Return what an empty prompt begins with."""
        tokenizer = self.model.tokenizer
        begin = list(tokenizer.begin) or ([tokenizer.eos] if tokenizer.eos is not None else [])
        if not begin:
            raise ConfigError(f"{self.task.name}: a prompt is empty, and the tokenizer has no token to begin with")
        return begin

    def _fitted(self, ids: list[int], more: int, item: Item) -> list[int]:
        limit = self.model.config.max_positions
        if limit is None or len(ids) + more <= limit:
            return ids
        if self.task.settings.long == "cut" and more < limit:
            return ids[len(ids) + more - limit :]
        raise PromptTooLong(
            f"{self.task.name}: item {item.number}: a prompt of {len(ids):,} tokens and an answer of {more:,} pass the "
            f"model's limit of {limit:,}; "
            + (
                'set long = "cut" in the task'
                if self.task.settings.long != "cut"
                else "set a lower max_tokens in the task"
            )
        )

    def _batches(self) -> Iterator[list[Asked]]:
        batch: list[Asked] = []
        size = longest = 0
        most = max(1, ROWS // max(1, self.task.settings.samples))
        for one in self.asked:
            reserved = max(longest, one.reserve) * (len(batch) + 1)
            if batch and (size + one.tokens > TOKENS or reserved > RESERVED or len(batch) == most):
                yield batch
                batch, size, longest = [], 0, 0
            batch.append(one)
            size, longest = size + one.tokens, max(longest, one.reserve)
        if batch:
            yield batch


def choose(questions: Questions, batch: Sequence[Asked]) -> list[Row]:
    """Score the choices of some items; return what is kept of each."""
    model, settings = questions.model, questions.task.settings
    found = likelihoods(model, [one.prompt for one in batch], [one.choices for one in batch])
    alone: list[list[float]] = [[] for _ in batch]
    if settings.normalise == "unconditional":
        flat = [pair for one in batch for pair in one.alone]
        scored = iter(likelihoods(model, [before for before, _ in flat], [[own] for _, own in flat]))
        alone = [[next(scored)[0].nats for _ in one.alone] for one in batch]
    rows = []
    for one, scores, without in zip(batch, found, alone, strict=True):
        item = one.item
        nats = [score.nats for score in scores]
        lengths = {
            "none": [1] * len(nats),
            "characters": [max(1, len(choice)) for choice in item.choices],
            "bytes": [max(1, len(choice.encode())) for choice in item.choices],
            "tokens": [len(choice) for choice in one.choices],
        }
        picked = {name: _best([n / k for n, k in zip(nats, ks, strict=True)]) for name, ks in lengths.items()}
        if without:
            picked["unconditional"] = _best([a - b for a, b in zip(nats, without, strict=True)])
        rows.append(
            {
                "item": item.number,
                "group": item.group,
                "prompt": one.text,
                "choices": list(item.choices),
                "right": list(item.right),
                "nats": nats,
                "greedy": [score.greedy for score in scores],
                **({"nats_alone": without} if without else {}),
                "picked": picked,
                "scores": {name: float(place in item.right) for name, place in picked.items()},
                "score": float(picked[settings.normalise] in item.right),
            }
        )
    return rows


def _best(scores: Sequence[float]) -> int:
    """Return the place of the highest; the first of equals."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def answer(questions: Questions, batch: Sequence[Asked], judge: Judge, seed: int) -> list[Row]:
    """Write and judge answers to some items; return what is kept of each."""
    settings = questions.task.settings
    each = [(one, sample) for one in batch for sample in range(settings.samples)]
    answers = write_answers(
        questions.model,
        [one.prompt for one, _ in each],
        [settings.max_tokens] * len(each),
        Sampling(temperature=settings.temperature, top_p=settings.top_p),
        [_seed(questions.task.name, one.item.number, sample, seed) for one, sample in each],
        [settings.stop] * len(each),
        questions.ends,
    )
    made: dict[int, Row] = {}
    for (one, _), written in zip(each, answers, strict=True):
        verdict = judge(one.item, written.text)
        row = made.setdefault(
            one.item.number,
            {
                "item": one.item.number,
                "group": one.item.group,
                "prompt": one.text,
                "gold": one.item.gold or one.item.tests,
                "answers": [],
            },
        )
        said: Row = {
            "text": written.text,
            "tokens": len(written.tokens),
            "ended": written.ended,
            "right": verdict.right,
        }
        said |= {} if verdict.judged else {"judged": False}
        said |= {"why": verdict.why} if verdict.why else {}
        said |= {} if verdict.well_formed is None else {"well_formed": verdict.well_formed}
        row["answers"].append(said)
    for row in made.values():
        row["score"] = sum(float(a["right"]) for a in row["answers"]) / len(row["answers"])
    return list(made.values())


def _seed(*parts: Any) -> int:
    """Return the seed of one answer: the same whatever else is asked."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


def unconditional_is_scored(task: Task) -> tuple[str, ...]:
    """Return the normalisations whose figures a task has."""
    return NORMALISATIONS if task.settings.normalise == "unconditional" else NORMALISATIONS[:-1]
