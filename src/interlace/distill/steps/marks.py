"""The marks that a judge wrote, in whatever form: JSON of its own shape, inside prose or a fence, or lines of text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LONGEST = 20_000  # characters of an answer that are looked at, its last
TRIES = 50  # places in it that may begin a JSON value
DEEPEST = 3  # tables within tables
SCORES = ("score", "mark", "value", "grade", "rating", "points")
NAMES = ("criterion", "name", "criteria")
NUMBER = r"-?\d{1,9}(?:\.\d{1,9})?"
QUOTES = r"[\"'*_`]{0,9}"
MARK = re.compile(
    rf"\s{{0,9}}{QUOTES}({NUMBER})(?![\w.]){QUOTES}\s{{0,9}}"
    r"(?:(?:/|out\s{1,9}of|of)\s{0,9}(\d{1,9})(?![\w.]))?"
)
LINE = re.compile(
    r"[\s>#*_\-+|\"'`\d.)]{0,40}?([A-Za-z]\w{0,99})\s{0,9}"
    rf"{QUOTES}\s{{0,9}}[:=|\uff1a]{{1,3}}\s{{0,9}}{QUOTES}\s{{0,9}}(.{{0,200}})"
)
GOES_ON = re.compile(r"(?:or|to|-\s{0,4}\d|–|\.\.)")  # "3 or 4", "3-4": no mark


def read_marks(text: str, criteria: Sequence[str], levels: int) -> tuple[dict[str, int], dict[str, str]]:
    """(marks by criterion, what is wrong with the others by criterion).

    A mark is a whole number from 0 to `levels`: 3, 3.0, "3", "3/4" or "3 out of 4" where 4 is the highest.
    """
    text = text[-LONGEST:].lstrip("\ufeff")
    text = text.rpartition("</think>")[2]
    names = {c.lower(): c for c in criteria}
    given: dict[str, Any] = {}
    for value in _values(text):
        given |= _named(value, names)
    for name, value in _lines(text, names).items():
        given.setdefault(name, value)
    marks = {c: m for c in criteria if c in given and (m := mark(given[c], levels)) is not None}
    wrong = {
        c: f"{given[c]!r:.60} is not a whole number from 0 to {levels}" if c in given else "is missing"
        for c in criteria
        if c not in marks
    }
    return marks, wrong


def mark(value: Any, levels: int) -> int | None:
    """A whole number from 0 to `levels`, however it is written; None for anything else."""
    if isinstance(value, dict):
        found = {m for k, v in value.items() if k.strip().lower() in SCORES and (m := mark(v, levels)) is not None}
        return found.pop() if len(found) == 1 else None
    if isinstance(value, str):
        match = MARK.fullmatch(value)
        if not match or (match[2] and int(match[2]) != levels):
            return None
        value = float(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return int(value) if 0 <= value <= levels and value == int(value) else None


def _values(text: str) -> Iterator[Any]:
    """The JSON tables and lists of a text, in order; a text that is JSON's text for one is read once more."""
    decoder, place, found = json.JSONDecoder(), 0, False
    for _ in range(TRIES):
        starts = [i for i in (text.find("{", place), text.find("[", place)) if i >= 0]
        if not starts:
            break
        try:
            value, place = decoder.raw_decode(text, min(starts))
        except (ValueError, RecursionError):
            place = min(starts) + 1
            continue
        found = True
        yield value
    if not found:
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(inner, str) and inner.lstrip()[:1] in ("{", "["):
            yield from _values(inner)


def _named(value: Any, names: Mapping[str, str], depth: int = 0) -> dict[str, Any]:
    """What a JSON value gives by the criteria's names."""
    found: dict[str, Any] = {}
    if depth > DEEPEST:
        return found
    if isinstance(value, list):
        for item in value:
            if not isinstance(item, dict):
                continue
            who = [str(item[k]).strip().lower() for k in item if k.strip().lower() in NAMES]
            if len(who) == 1 and who[0] in names:
                found[names[who[0]]] = {k: v for k, v in item.items() if k.strip().lower() not in NAMES}
            else:
                found |= _named(item, names, depth + 1)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if (name := names.get(key.strip().lower())) is not None:
                found[name] = inner
            elif isinstance(inner, dict | list):
                found = {**_named(inner, names, depth + 1), **found}
    return found


def _lines(text: str, names: Mapping[str, str]) -> dict[str, str]:
    """What lines such as "correct: 3" give."""
    found: dict[str, str] = {}
    for line in re.split(r"[\n,{}]", text):
        match = LINE.match(line)
        name = names.get(match[1].lower()) if match else None
        if match is None or name is None or name in found:
            continue
        written = MARK.match(match[2])
        if written and not GOES_ON.match(match[2][written.end() :].strip()):
            found[name] = match[2][: written.end()].strip()
    return found
