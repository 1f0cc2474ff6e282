"""Tasks that need no file and no network: facts hidden in real text, and lists to recall from, made from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from interlace.base.errors import ConfigError
from interlace.data.library import sources
from interlace.data.tokenizer import Tokenizer
from interlace.evaluate.task import Item, Task, TaskSettings

NAMES = (
    *("Ada", "Boris", "Chloe", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Imani", "Jonas", "Kenji", "Lucia"),
    *("Marta", "Nadia", "Oscar", "Priya", "Quinn", "Rosa", "Stefan", "Tomas", "Ursula", "Viktor", "Wanda", "Yusuf"),
)
OPTIONS = 8  # facts in a text, all of which are choices: guessing is right one time in eight
LENGTHS = (1024, 4096, 16_384, 65_536)  # tokens of a text with needles
PAIRS = (8, 32, 128, 512)  # of a list
EACH = 24  # items of each length
ROOM = 24  # tokens of a choice, at most
_SETTINGS = {"kind": "choice", "data": "-", "prompt": "-", "choices": ["-"], "right": "-"}


def needles(
    tokenizer: Tokenizer, lengths: Sequence[int], seed: int, each: int = EACH, text: Path | None = None
) -> Task:
    """Return items with eight facts hidden in real text of some length, one of which is asked for.

    Every fact is a choice, so that a model must find the right one, and not any. Groups are lengths in tokens.

    Args:
        text: in which facts are hidden; the source of Python's standard library if None.
    """
    hay, items = _Hay(tokenizer, text), list[Item]()
    for length in lengths:
        if length < 256:
            raise ConfigError(f"--lengths: must be at least 256 tokens, got {length}")
        for number in range(each):
            draw = np.random.default_rng([seed, length, number])
            people, codes = _facts(draw, OPTIONS)
            facts = [f"\n\nThe code of {p} is {c}.\n\n" for p, c in zip(people, codes, strict=True)]
            question = "\n\nThe code of {} is"
            used = sum(len(tokenizer.encode(x)) for x in (*facts, question.format(people[0]))) + 8
            parts = hay.parts(draw, max(1, length - used), OPTIONS + 1)
            asked = int(draw.integers(OPTIONS))
            body = parts[0] + "".join(fact + part for fact, part in zip(facts, parts[1:], strict=True))
            items.append(
                Item(len(items), body + question.format(people[asked]), (), tuple(codes), (asked,), group=str(length))
            )
    settings = TaskSettings.model_validate({"name": "needles", **_SETTINGS})
    return Task("needles", settings, tuple(items), f"needles {seed} {each} {list(lengths)} {hay.known}")


def recall(
    tokenizer: Tokenizer, seed: int, each: int = EACH, pairs: Sequence[int] = PAIRS, limit: int | None = None
) -> Task:
    """Return items with a list of names and codes, one of which is asked for. Groups are how many pairs a list has.

    limit: tokens that a model reads at most; longer lists are left out.

    Raises:
        ConfigError: no list is short enough.
    """
    items = list[Item]()
    for count in pairs:
        for number in range(each):
            draw = np.random.default_rng([seed, 0, count, number])
            people, codes = _facts(draw, count)
            asked = int(draw.integers(count))
            others = [int(i) for i in draw.permutation(count) if i != asked][: OPTIONS - 1]
            options = sorted([asked, *others], key=lambda i: codes[i])
            body = "\n".join(f"{p}: {c}" for p, c in zip(people, codes, strict=True))
            prompt = f"{body}\n\n{people[asked]}:"
            choices = tuple(codes[i] for i in options)
            items.append(Item(len(items), prompt, (), choices, (options.index(asked),), group=str(count)))
    if limit is not None:
        long = {item.group for item in items if len(tokenizer.encode(item.prompt)) + ROOM > limit}
        items = [replace(item, number=i) for i, item in enumerate(x for x in items if x.group not in long)]
    if not items:
        raise ConfigError(f"--suites: recall: the model reads {limit:,} tokens, fewer than its shortest list has")
    groups = list(dict.fromkeys(item.group for item in items))
    settings = TaskSettings.model_validate({"name": "recall", **_SETTINGS})
    return Task("recall", settings, tuple(items), f"recall {seed} {each} {groups}")


def _facts(draw: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """Return different names and different codes of five digits."""
    names = [NAMES[int(i)] for i in draw.permutation(len(NAMES))]
    people = [names[i % len(names)] + (f" {i // len(names) + 1}" if i >= len(names) else "") for i in range(count)]
    codes = draw.choice(90_000, size=count, replace=False) + 10_000
    return people, [str(code) for code in codes]


class _Hay:
    """Real text, of which stretches are taken by their tokens."""

    def __init__(self, tokenizer: Tokenizer, text: Path | None):
        read, held = sources(text), list[str]()
        size = 0
        for document in read:
            held.append(document.text)
            size += len(document.text)
            if size > 4_000_000:
                break
        self._tokenizer, self._text = tokenizer, "\n".join(held)
        self.known = f"{len(self._text)} {hash_of(self._text)}"

    def parts(self, draw: np.random.Generator, tokens: int, count: int) -> list[str]:
        """Return so many tokens of text that lie together, cut in parts at ends of lines."""
        start = int(draw.integers(max(1, len(self._text) - 6 * tokens)))
        ids: list[int] = []
        size = 6 * tokens
        while len(ids) < tokens and size < 64 * tokens:
            ids = self._tokenizer.encode(self._text[start : start + size])
            size *= 2
        if len(ids) < tokens and start:  # the end was reached
            ids = self._tokenizer.encode(self._text[-12 * tokens :])
        if len(ids) < tokens:
            raise ConfigError(
                f"--text: holds {len(ids):,} tokens, too few for a text of {tokens:,}; name a longer one, or lower "
                "--lengths"
            )
        stretch = self._tokenizer.decode(ids[:tokens])
        cuts = [0, *(_cut(stretch, round(i * len(stretch) / count)) for i in range(1, count)), len(stretch)]
        return [stretch[a:b] for a, b in pairwise(cuts)]


def _cut(text: str, place: int) -> int:
    """Return the first end of a line, or else of a word, in the next 200 characters."""
    near = text[place : place + 200]
    return place + next((at + 1 for mark in ("\n", " ") if (at := near.find(mark)) >= 0), 0)


def hash_of(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
