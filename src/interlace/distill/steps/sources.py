"""Steps that feed others with rows: `jsonl`, `text` (parts of text files) and `table` (columns in the recipe)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from interlace.base.errors import DataError
from interlace.data.sources import Sources
from interlace.distill.desk import Desk
from interlace.distill.steps.base import Step
from interlace.text.rows import read_rows

LOOKED_AT = 1000  # rows whose keys are taken for the columns of a file


class Feeding(Step):
    """A step that makes rows and takes none.

    Attributes:
        limit: the most rows; all if not given.
    """

    FEEDS: ClassVar[bool] = True

    limit: int | None = Field(default=None, gt=0)


class Jsonl(Feeding):
    """`kind = "jsonl"`: one row for each object of a JSONL file.

        [[steps]]
        kind = "jsonl"
        path = "questions.jsonl"
        limit = 1000

    Attributes:
        path: the file, from the recipe's folder on.
    """

    kind: Literal["jsonl"]
    path: str

    def files(self) -> tuple[str, ...]:
        """Return the file."""
        return (self.path,)

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Return the keys of the first rows.

        Every line is read here: a broken one must be found before anything is paid.
        """
        found: set[str] = set()
        for number, row in enumerate(read_rows(folder / self.path)):
            if number < LOOKED_AT:
                found |= set(row)
        if not found:
            raise DataError(f"{folder / self.path}: holds no rows")
        return frozenset(found)

    def rows(self, desk: Desk) -> Iterator[dict[str, Any]]:
        """Yield the objects of the file."""
        return read_rows(desk.folder / self.path)


class Texts(Feeding):
    """`kind = "text"`: parts of text files and folders.

        [[steps]]
        kind = "text"
        path = ["notes/", "book.txt"]
        characters = 4000

    Attributes:
        path: files and folders, from the recipe's folder on.
        field: the key that holds the text in JSONL files.
        into: the column; `document` names the part's file.
        characters: about how long a part is; cut at an empty line where there is one, else at the end of a line.
    """

    kind: Literal["text"]
    path: tuple[str, ...] = Field(strict=False, min_length=1)
    into: str = "text"
    field: str = "text"
    characters: int = Field(default=4000, gt=0)

    @field_validator("path", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def files(self) -> tuple[str, ...]:
        """Return the files and folders."""
        return self.path

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Return the column of the text, and `document`."""
        return frozenset({self.into, "document"})

    def rows(self, desk: Desk) -> Iterator[dict[str, Any]]:
        """Yield the parts in order."""
        for document in Sources([desk.folder / p for p in self.path], self.field, cut=False):
            if document.messages is not None:
                raise DataError(f"steps.{self.name}: {document.name} holds messages and no {self.field!r}; set field")
            for part in parts(document.text, self.characters):
                yield {self.into: part, "document": document.name}


def parts(text: str, characters: int) -> Iterator[str]:
    """Yield a text in parts of at most about 1.25 times so many characters, cut at empty lines, lines or words."""
    start = 0
    while len(text) - start > 1.25 * characters:
        stop = start + characters
        for mark in ("\n\n", "\n", " "):
            found = text.rfind(mark, start + characters // 2, stop + characters // 4)
            if found > 0:
                stop = found + len(mark)
                break
        if part := text[start:stop].strip():
            yield part
        start = stop
    if part := text[start:].strip():
        yield part


class Table(Feeding):
    """`kind = "table"`: columns written in the recipe, combined.

        [[steps]]
        kind = "table"
        how = "product"                     # every combination; or "rows", or "sample"
        [steps.columns]
        topic = ["fractions", "speed"]
        level = ["easy", "hard"]

    Attributes:
        columns: the values of each column, by its name.
        how: "product"; "rows" takes the first of every column, then the second; "sample" draws `count` combinations.
        count: how many to draw; drawn anew by the recipe's seed.
    """

    kind: Literal["table"]
    columns: dict[str, list[Any]] = Field(min_length=1)
    how: Literal["product", "rows", "sample"] = "product"
    count: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Table:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if 0 in lengths.values():
            raise ValueError(f"columns: {next(n for n, k in lengths.items() if not k)} is empty")
        if self.how == "rows" and len(set(lengths.values())) > 1:
            said = ", ".join(f"{n} has {k}" for n, k in lengths.items())
            raise ValueError(f"columns: must be equally long for how = 'rows': {said}")
        if (self.how == "sample") != bool(self.count):
            raise ValueError("count: says how many to draw, and belongs to how = 'sample' alone")
        return self

    def draws(self) -> bool:
        """Return True if combinations are drawn."""
        return self.how == "sample"

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Return the names of the columns."""
        return frozenset(self.columns)

    def rows(self, desk: Desk) -> Iterator[dict[str, Any]]:
        """Yield the combinations in order."""
        names, values = list(self.columns), list(self.columns.values())
        if self.how == "rows":
            combined: Iterator[tuple[Any, ...]] = zip(*values, strict=True)
        elif self.how == "product":
            combined = product(*values)
        else:
            draw = random.Random(f"{desk.seed} {self.name}")
            combined = (tuple(draw.choice(v) for v in values) for _ in range(self.count))
        return (dict(zip(names, row, strict=True)) for row in combined)
