"""Find benchmark items in a text, also lightly reworded: how much of an item do the text's runs of words cover?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.base.errors import DataError
from interlace.base.text import text_of
from interlace.text.rows import read_rows
from interlace.text.words import words_of
from interlace.verify.final import final_answer
from interlace.verify.numbers import same_number

RUN = 4  # words
THRESHOLD = 0.5  # coverage from which a match counts
WITH_ANSWER = 0.35  # the same, where the answer is the item's too
SHORT = 2 * RUN  # items with fewer words count only when all of them are there
LEAST = 3  # words of an item that is told by its answer
ANSWER_LONGEST = 60  # characters of an answer that is looked for
SENTENCE = re.compile(r"[.?!:;](?=\W|$)|[\n\u3002\uff01\uff0c\uff1a\uff1b\uff1f]")


@dataclass(frozen=True)
class Item:
    """One item of a benchmark: its words, and its short answer if it has one."""

    benchmark: str
    number: int
    words: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Match:
    """An item, and the share of its words that runs of a text cover."""

    item: Item
    coverage: float
    answered: bool


def runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Return every run of RUN words; all words as one run if there are fewer."""
    return set(_each_run(words))


def _each_run(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the runs in order, each as often as it occurs."""
    if len(words) <= RUN:
        return [tuple(words)] if words else []
    return [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]


def read_benchmark(name: str, path: Path, columns: Sequence[str], answer: str) -> list[Item]:
    """Return the items of a JSONL file.

    Raises:
        DataError: it is missing, broken, or has no such columns.
    """
    items = []
    for number, row in enumerate(read_rows(path), start=1):
        missing = [c for c in columns if c not in row]
        if missing:
            raise DataError(
                f"{path}: item {number} of benchmark {name!r} has no column {missing[0]!r} (it has {', '.join(row)}); "
                "name the columns that hold its text with columns"
            )
        words = words_of(" ".join(text_of(row[c]) for c in columns))
        short = final_answer(text_of(row.get(answer))) if answer else ""
        items.append(Item(name, number, words, short if len(short) <= ANSWER_LONGEST else ""))
    if not items:
        raise DataError(f"{path}: holds no items")
    return items


class Index:
    """Items by their runs of words."""

    def __init__(self, items: Sequence[Item]):
        """Build the index; it takes some hundred bytes for each word of the items."""
        self.items = items
        self._by_run: dict[tuple[str, ...], list[int]] = {}
        for place, item in enumerate(items):
            for run in _each_run(item.words):
                self._by_run.setdefault(run, []).append(place)

    def nearest(
        self, text: str, answer: str = "", threshold: float = THRESHOLD, with_answer: float = WITH_ANSWER
    ) -> Match | None:
        """Return the item that counts most by the rule of `judged`; None if the text has no run of any item.

        Every item that shares a run is examined, unless it shares too few to count more than the best. An item that is
        no longer than a run occurs in many texts by chance: it must be a sentence of the text, or go with its answer.
        """
        words, alone = words_of(text), sentences(text)
        found = runs(words) | {tuple(words[i : i + n]) for n in range(1, RUN) for i in range(len(words) - n + 1)}
        shared: Counter[int] = Counter()
        for run in found:
            shared.update(self._by_run.get(run, ()))
        most = {place: min(1.0, count * RUN / len(self.items[place].words)) for place, count in shared.items()}
        lowest = min(threshold, with_answer) if answer else threshold
        best, rank = None, (0.0, 0, "", 0)
        for place in sorted(most, key=lambda p: -most[p]):
            if most[place] / lowest < rank[0]:
                break
            item = self.items[place]
            share = coverage(item.words, found)
            if share / lowest < rank[0] or (len(item.words) < SHORT and share < 1):
                continue
            match = Match(item, share, bool(answer and item.answer) and answers(answer, item.answer))
            told = match.answered and len(item.words) >= LEAST
            if len(item.words) <= RUN and not told and item.words not in alone:
                continue
            counts = share / (with_answer if match.answered else threshold)
            if (now := (counts, len(item.words), item.benchmark, -item.number)) > rank:
                best, rank = match, now
        return best


def sentences(text: str) -> set[tuple[str, ...]]:
    """Return the words of sentences, and of several in a row, with two to RUN words; or of the text if it is one word.

    A line is a sentence too, and so is the text before or after a colon.
    """
    parts = [
        words for part in SENTENCE.split(text) if (words := words_of(part.strip("*_#> \t")))
    ]  # no marks of Markdown
    found = set()
    for first in range(len(parts)):
        joined: tuple[str, ...] = ()
        for part in parts[first : first + RUN]:
            joined += part
            if len(joined) <= RUN and (len(joined) > 1 or len(parts) == 1):
                found.add(joined)
    return found


def coverage(words: Sequence[str], found: set[tuple[str, ...]]) -> float:
    """Return the share of an item's words that lie in a run which the text has too."""
    width = min(RUN, len(words))
    covered = [False] * len(words)
    for i in range(len(words) - width + 1):
        if tuple(words[i : i + width]) in found:
            covered[i : i + width] = [True] * width
    return sum(covered) / len(covered) if covered else 0.0


def answers(said: str, known: str) -> bool:
    """Return whether an answer is the item's: the same number, or the same words."""
    return same_number(said, known)[0] or words_of(final_answer(said)) == words_of(known)


def judged(match: Match | None, threshold: float, with_answer: float) -> bool:
    """Return whether a match counts: covered to the threshold, or to the lower one if the answer is the item's too."""
    return match is not None and match.coverage >= (with_answer if match.answered else threshold)


def to_columns(match: Match) -> dict[str, Any]:
    """Return a match as plain data."""
    return {
        "benchmark": match.item.benchmark,
        "item": match.item.number,
        "coverage": round(match.coverage, 3),
        "answered": match.answered,
    }
