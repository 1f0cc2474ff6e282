"""Steps that let only some rows go on (`best`, `filter`), and `template`, which makes a column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from interlace.base.text import text_of
from interlace.distill.desk import Desk
from interlace.distill.ledger.records import Row
from interlace.distill.steps.ask import CHECKS
from interlace.distill.steps.base import OF_A_ROW, Out, Rows, Step, drop, ended_by
from interlace.sandbox.worker import OutOfBounds, Refused
from interlace.verify.final import find
from interlace.verify.numbers import final_number

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0", "")


def family(key: str) -> str:
    """Return the part of a key that all samples of one row share: the key without the number of the sample."""
    return key.rpartition(".")[0] or key


class Best(Step):
    """`kind = "best"`: of the samples that an earlier step made from one row, the best.

        [[steps]]
        kind = "best"
        highest = "score"            # or: vote = "answer"

    Attributes:
        highest: a column of numbers; the highest goes on, the first of equal ones.
        vote: a column; the first sample of those whose text is most frequent goes on (self-consistency: Wang et al.,
            arXiv 2203.11171). Texts that end in a number are one vote if the numbers are equal.
        keep: how many go on.
    """

    ORDERED: ClassVar[bool] = True

    kind: Literal["best"]
    highest: str = ""
    vote: str = ""
    keep: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _one_way(self) -> Best:
        if bool(self.highest) == bool(self.vote):
            raise ValueError("highest, vote: name one of them, a column")
        return self

    def reads(self) -> dict[str, str]:
        """Return the column that decides."""
        return {"highest": self.highest} if self.highest else {"vote": self.vote}

    async def all(self, rows: Rows, desk: Desk) -> AsyncIterator[Out]:
        """Choose among the samples of one row at a time; a row whose score or vote cannot be read ends alone."""
        for _, group in groupby(rows(), key=lambda r: family(r.key)):
            samples: list[tuple[Row, Any]] = []
            for row in group:
                try:
                    samples.append((row, self._weight(row)))
                except OF_A_ROW as error:
                    yield ended_by(error, row)
            for place, row in enumerate(self._ranked(samples)):
                yield Out(parent=row) if place < self.keep else Out({}, "dropped", "not the best of its samples", row)

    def _ranked(self, samples: list[tuple[Row, Any]]) -> list[Row]:
        """Return the rows, best first; among equal ones the earlier comes first."""
        votes = Counter(weight for _, weight in samples)
        rank = (lambda s: -s[1]) if self.highest else (lambda s: -votes[s[1]])
        return [row for row, _ in sorted(samples, key=rank)]

    def _weight(self, row: Row) -> float | str:
        """Return the row's score, or its vote."""
        if self.highest:
            return _number(row.values.get(self.highest))
        return _ballot(text_of(row.values.get(self.vote)))


def _number(value: Any) -> float:
    """Return a score as a number, also if it is written as text; a value that is no number comes last (-inf)."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return float("-inf")
    except OverflowError:  # a whole number too large for a float
        return float("inf") if value > 0 else float("-inf")
    return found if found == found else float("-inf")


def _ballot(text: str) -> str:
    """Return a text's vote: its number, if it states an answer or ends in a number, else its words in lower case."""
    ends = final_number(text.strip().rsplit(maxsplit=1)[-1]) if text.strip() else None
    number = final_number(text) if ends is not None or find(text).place != "nowhere" else None
    return " ".join(text.split()).lower() if number is None else str(number)


class Filter(Step):
    """`kind = "filter"`: rows whose text is as it should be go on.

        [[steps]]
        kind = "filter"
        column = "answer"
        shortest = 40
        longest = 8000
        language = "en"

    Attributes:
        column: the text.
        shortest, longest: its length in characters.
        pattern, without: regular expressions that must be found, and that must not.
        language: codes of ISO 639-1; the likeliest of the languages that py3langid knows must be among them.
        where: a template that must say true (true, yes or 1; false, no, 0 or nothing).
        seconds: the time for one pattern; a row that takes longer is dropped.
    """

    kind: Literal["filter"]
    column: str = ""
    shortest: int = Field(default=0, ge=0)
    longest: int | None = Field(default=None, gt=0)
    pattern: str = ""
    without: str = ""
    language: tuple[str, ...] = Field(default=(), strict=False)
    where: str = ""
    seconds: float = Field(default=5.0, gt=0)

    @field_validator("language", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _whole(self) -> Filter:
        asks = self.shortest or self.longest or self.pattern or self.without or self.language
        if bool(asks) != bool(self.column):
            raise ValueError("column: names the text whose length, pattern or language counts; give both or neither")
        if not asks and not self.where:
            raise ValueError("filter: asks for nothing; give a length, a pattern, a language or where")
        if self.longest is not None and self.longest < self.shortest:
            raise ValueError(f"longest: {self.longest} is less than shortest = {self.shortest}")
        for name in ("pattern", "without"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"{name}: is no regular expression: {error}") from None
        return self

    def templates(self) -> dict[str, str]:
        """Return the template of the condition."""
        return {"where": self.where}

    def reads(self) -> dict[str, str]:
        """Return the column of the text."""
        return {"column": self.column} if self.column else {}

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Add the column of the language, if languages are named."""
        return given | ({f"{self.column}_language"} if self.language else set())

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Drop the row for the first rule that it breaks."""
        text = text_of(row.values.get(self.column)) if self.column else ""
        if len(text) < self.shortest:
            return [drop(f"shorter than {self.shortest} characters")]
        if self.longest is not None and len(text) > self.longest:
            return [drop(f"longer than {self.longest} characters")]
        if self.where:
            said = desk.render(self.where, row, "where").strip().lower()
            if said not in TRUE:
                return [drop("where is not true" if said in FALSE else "where says neither true nor false")]
        for pattern, wanted in ((self.pattern, True), (self.without, False)):
            if pattern and (why := await self._broken(pattern, wanted, text, desk)):
                return [drop(why)]
        if self.language:
            found = await desk.on_a_core(language_of, text)
            values = {f"{self.column}_language": found}
            if found not in self.language:
                return [drop(f"language {found}", **values)]
            return [Out(values)]
        return [Out()]

    async def _broken(self, pattern: str, wanted: bool, text: str, desk: Desk) -> str:
        try:
            found, _ = await desk.work(CHECKS, {"do": "pattern", "text": text, "pattern": pattern}, self.seconds)
        except (OutOfBounds, Refused) as error:
            return f"the pattern {error}"
        return "" if found == wanted else "the pattern is not found" if wanted else "the pattern is found"


def language_of(text: str) -> str:
    """Return the likeliest language of a text as its ISO 639-1 code. Model: py3langid, which knows 97 languages."""
    import py3langid

    return str(py3langid.classify(text[:5000])[0])


class Render(Step):
    """`kind = "template"`: a new column from others.

        [[steps]]
        kind = "template"
        into = "question"
        template = "{{ a }} + {{ b }} = ?"

    Attributes:
        template: the template over the row's columns.
        into: the new column.
    """

    kind: Literal["template"]
    template: str = Field(min_length=1)
    into: str = Field(min_length=1)

    def templates(self) -> dict[str, str]:
        """Return the template."""
        return {"template": self.template}

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Add the new column."""
        return given | {self.into}

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Render the template."""
        return [Out({self.into: desk.render(self.template, row, "template")})]
