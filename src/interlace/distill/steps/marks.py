"""Read the marks that a judge wrote, in any form: JSON of any shape, in prose or a fence, tables, or lines of text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

LONGEST = 20_000  # characters of an answer that are looked at, its last
TRIES = 50  # places in it that may begin a JSON value
DEEPEST = 4  # tables within tables
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SCORE = r"(?:scores?|marks?|values?|grades?|ratings?|points?|levels?|results?|verdict|assessment|judge?ment)"
MOST = re.compile(r"(?:max|outof|of$|scale|total)")  # {"score": 3, "max": 4}
NUMBER = rf"(?:[+-]?\d{{1,9}}(?:\.\d{{1,9}})?|{'|'.join(WORDS)})(?!\w|[.,]\d)"
OPEN, CLOSE = r"[\s\"'*_`\[({\u201c]{0,9}", r"[\s\"'*_`\])}\u201d]{0,9}"
DASH = r"[-\u2013\u2014]"
OF = rf"\s{{0,3}}(?:[(\[]?\s?(?:/|out\s{{1,3}}of|of)|[(\[]\s?[01]\s?(?:{DASH}|to|\.\.))\s{{0,3}}"  # 3 of 4; 3 (0-4)
POINTS = r"(?:\s{0,3}points?)?"
MARK = re.compile(
    rf"(?P<open>{OPEN})(?:\\boxed\{{)?(?P<label>{SCORE}\W{{1,9}})?(?P<mark>{NUMBER}){POINTS}(?:{OF}(?P<most>{NUMBER}))?"
    rf"{POINTS}{CLOSE}(?P<stop>\Z|\n|[.!,;:(|#]|{DASH}|</?\w|//|/\*|because\b)",
    re.IGNORECASE,
)
OR = r"(?:or|to|maybe|perhaps|possibly)\b"
RANGE = re.compile(  # a number here is no mark: 3 - 4; 3 (or 4); 3, maybe 4; 0 (bad) .. 4 (good); 0 - bad, 4 - good
    rf"\.\.|{DASH}+>|(?:[,;:]|{DASH})[^\S\n]*(?:\(?{OR}|\d)|\(\s*(?:{OR}|of\b|out\b|/|\d+\s*\))|"
    rf"\([^()]{{0,200}}\)\s*(?:{OR}|\.\.|{DASH}\s*\d)|\([^()]{{0,60}}\b(?:scale|max)|"
    rf"{DASH}\s*\Z|[^\n]{{0,100}}[,;]\s*\d+\s*(?:[:=]|{DASH})",
    re.IGNORECASE,
)
LABEL = re.compile(rf"(?:^|[.;(])[\s*_>-]{{0,9}}{SCORE}{CLOSE}[:=]", re.IGNORECASE | re.MULTILINE)
BEFORE = re.compile(  # what may stand between the start of a line or clause and a criterion: "2. **Mark for "
    rf"(?:(?:\A|[\n;,|])[\s>#*_-]*\d{{1,2}}[.)]|\A|[\n,;|{{}}<>:=.!?]|\band|(?<=\d)\s)[\s>#*_+\-\"'`\u201c(\[]*"
    rf"(?:(?:the )?(?:{SCORE} )?(?:for|of) |{SCORE}[\s_-])?[*_\"'`\u201c]*\Z",
    re.IGNORECASE,
)
AFTER = rf"(?:[\s_-]{{0,2}}{SCORE})?{CLOSE}(?P<remark>\([^()\n]{{0,60}}\))?{CLOSE}"
SCALE = re.compile(rf"(?:/|of|to|max\w*|\d\s*{DASH}|\.\.)\s*(\d+)\s*\)")  # correct (0-10): 3
BY = r"(?P<by>[:=|>\uff1a\u2192]|->|\s-{1,2}\s|\s?[\u2013\u2014]\s|\s{1,3}is\b|\t|,(?=\d)|(?=\n))"


def read_marks(text: str, criteria: Sequence[str], levels: int) -> tuple[dict[str, int], dict[str, str]]:
    """Return (marks by criterion, what is wrong with the others by criterion); of several marks the last counts.

    A mark is a whole number from 0 to `levels`: 3, 3.0, "3", "3/4" or "3 out of 4" where 4 is the highest. Names are
    compared without case, spaces, hyphens and underscores.
    """
    text = text[-LONGEST:].lstrip("\ufeff").rpartition("</think>")[2]
    reader = _Reader(criteria, levels)
    found, lines = [], text
    for begin, end, value in _values(text):
        if named := reader.in_json(value):
            found += [(begin, name, said) for name, said in named.items()]
            lines = lines[:begin] + "\n" * (end - begin) + lines[end:]
    found += [*reader.in_lines(lines), *reader.in_columns(lines)]
    given = {name: said for _, name, said in sorted(found, key=lambda f: f[0])}
    if not given and len(criteria) == 1 and (alone := mark(text, levels)) is not None:
        given = {criteria[0]: alone}
    marks = {c: m for c in criteria if c in given and (m := mark(given[c], levels)) is not None}
    wrong = {
        c: f"{given[c]!r:.60} is not a whole number from 0 to {levels}" if c in given else "is missing"
        for c in criteria
        if c not in marks
    }
    return marks, wrong


def fold(name: str) -> str:
    """Return a name as it is compared: without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]", "", name).casefold()


def mark(value: Any, levels: int, depth: int = 0) -> int | None:
    """Return a value as a whole number from 0 to `levels`, in whatever form it is written; None for anything else."""
    if isinstance(value, str):
        return _written(value, levels)
    if isinstance(value, dict | list) and depth < DEEPEST:
        inner = value
        if isinstance(value, dict):
            most = [re.findall(r"\d+", str(v)[:20])[-1:] for k, v in value.items() if MOST.match(fold(k))]
            if any(n and int(n[0]) != levels for n in most):
                return None
            inner = [v for k, v in value.items() if re.fullmatch(SCORE, fold(k))]
        found = {m for v in inner if (m := mark(v, levels, depth + 1)) is not None}
        return found.pop() if len(found) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return int(value) if 0 <= value <= levels and value == int(value) else None


def _written(text: str, levels: int, place: int = 0) -> int | None:
    """Return the mark that a text begins with, or that it states as its score."""
    match = MARK.match(text, place)
    if match is None:
        found = {m for at in LABEL.finditer(text, place) if (m := _one(MARK.match(text, at.end()), levels)) is not None}
        return found.pop() if len(found) == 1 else None
    return _one(match, levels)


def _one(match: re.Match[str] | None, levels: int) -> int | None:
    """Return the mark of a match; None if it belongs to a range or another scale, or numbers a line of a list."""
    if match is None or (match["stop"] != "\n" and RANGE.match(match.string, match.start("stop"))):
        return None
    rest = match.string[match.end() : match.end() + 200].partition("\n")[0].strip()
    if "\n" in match["open"] and not match["label"] and match["stop"] in (".", ":") and rest:
        return None
    value, most = (_number(match[k]) if match[k] else levels for k in ("mark", "most"))
    return mark(value, levels) if most == levels else None


def _number(said: str) -> float:
    return WORDS.index(said.lower()) if said.lower() in WORDS else float(said)


def _values(text: str) -> Iterator[tuple[int, int, Any]]:
    """Yield (begin, end, value) of the JSON objects and lists in a text, in order; or of all of it, if it is JSON."""
    decoder, place, found = json.JSONDecoder(), 0, False
    for _ in range(TRIES):
        starts = [i for i in (text.find("{", place), text.find("[", place)) if i >= 0]
        if not starts:
            break
        begin = min(starts)
        try:
            value, place = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            place = begin + 1
            continue
        found = True
        yield begin, place, value
    if not found and (value := _parsed(text)) is not None:
        yield 0, len(text), value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class _Reader:
    """Reads the marks of some criteria from JSON, lines and tables."""

    def __init__(self, criteria: Sequence[str], levels: int):
        self.levels = levels
        self.names = {fold(c): c for c in criteria}
        spelled = "|".join("[ _-]?".join(map(re.escape, n)) for n in sorted(self.names, key=len, reverse=True))
        self.key = re.compile(rf"\W*(?:{SCORE}[\s_-]+(?:for |of )?)?({spelled}){AFTER}", re.IGNORECASE)
        self.place = re.compile(rf"(?<![^\W_])({spelled}){AFTER}{BY}", re.IGNORECASE)

    def name(self, said: Any) -> str | None:
        """Return the criterion that a key or a cell names, or None."""
        match = self.key.fullmatch(said[:200]) if isinstance(said, str) else None
        return self.names[fold(match[1])] if match and self._fits(match) else None

    def _fits(self, match: re.Match[str]) -> bool:
        """Return whether the scale beside a name is ours; True if there is none."""
        scale = SCALE.search(match["remark"] or "")
        return scale is None or int(scale[1][:9]) == self.levels

    def in_json(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """Return the values that a JSON value gives for criteria, by the criterion."""
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            value = _parsed(value)
        found: dict[str, Any] = {}
        if depth > DEEPEST or not value or not isinstance(value, dict | list):
            return found
        if isinstance(value, list):
            first = self.name(value[0])
            if first and mark(value[1:], self.levels) is not None:  # ["correct", 3]
                return {first: value[1:]}
            for item in value:
                found |= self.in_json(item, depth + 1)
            return found
        named = {k: n for k in value if (n := self.name(k)) is not None}
        who = [n for v in value.values() if (n := self.name(v)) is not None]
        if len(who) == 1 and all(re.fullmatch(SCORE, fold(k)) or self.name(value[k]) for k in named):
            return {who[0]: value}  # {"criterion": "correct", "score": 3}
        for key, inner in value.items():
            if key not in named:
                found = {**self.in_json(inner, depth + 1), **found}
        return found | {n: value[k] for k, n in named.items()}

    def in_lines(self, text: str) -> Iterator[tuple[int, str, int]]:
        """Yield (place, criterion, mark) of lines such as "correct: 3", and of headings with a score below."""
        places: list[tuple[int, Any]] = []
        for match in self.place.finditer(text):
            before = BEFORE.search(text, max(0, match.start() - 60), match.start())
            if before:
                places.append((before.start(), match))
        for (begin, match), (end, _) in pairwise([*places, (len(text), None)]):
            said = re.split(r"\n\s{0,9}#", text[match.end() : end], maxsplit=1)[0]
            cells = said.partition("\n")[0].split("|") if match["by"] == "|" else [said]
            found = {m for cell in cells if (m := _written(cell, self.levels)) is not None}
            if len(found) == 1 and self._fits(match):
                yield begin, self.names[fold(match[1])], found.pop()

    def in_columns(self, text: str) -> Iterator[tuple[int, str, int]]:
        """Yield (place, criterion, mark) of tables whose columns are the criteria."""
        place = 0
        header: list[str | None] = []
        for line in text.splitlines(keepends=True):
            cells = re.split(r"[|,;\t]", line.strip())
            if header and len(cells) == len(header):
                row = {
                    n: m for n, c in zip(header, cells, strict=True) if n and (m := mark(c, self.levels)) is not None
                }
                yield from ((place, name, m) for name, m in row.items())
            elif len(cells) > 1 and line.strip(" |-:\n"):
                header = [self.name(c.strip()) for c in cells]
                header = header if {*header} >= {*self.names.values()} else []
            place += len(line)
