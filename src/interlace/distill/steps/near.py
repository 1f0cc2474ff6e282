"""Steps that compare rows with each other (`dedup`) or with benchmarks (`decontaminate`)."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator

from interlace.base.text import digest
from interlace.distill.desk import Desk
from interlace.distill.ledger.records import Row
from interlace.distill.steps.base import OF_A_ROW, Out, Rows, Step, drop, ended_by
from interlace.text.contamination import THRESHOLD, WITH_ANSWER, Index, judged, read_benchmark, to_columns

T = TypeVar("T")


class Dedup(Step):
    """`kind = "dedup"`: of texts that are nearly the same, the first goes on (MinHash).

        [[steps]]
        kind = "dedup"
        text = "{{ question }}"
        threshold = 0.8

    Attributes:
        text: template of what is compared.
        threshold: the estimated Jaccard similarity of the sets of runs of words from which two texts are near; 128
            hashes estimate it with a deviation of at most 0.044. At 1 the texts themselves are compared, spaces aside.
        words: how many words a run has.
    """

    ORDERED: ClassVar[bool] = True

    kind: Literal["dedup"]
    text: str = Field(min_length=1)
    threshold: float = Field(default=0.8, gt=0.2, le=1)
    words: int = Field(default=3, gt=0)

    def templates(self) -> dict[str, str]:
        """Return the template of the text that is compared."""
        return {"text": self.text}

    async def all(self, rows: Rows, desk: Desk) -> AsyncIterator[Out]:
        """Sign every row, then go through the rows again and drop those that are near an earlier one.

        A signature takes at most 512 bytes, and texts are not held in memory. A row that cannot be signed ends alone.
        """
        ended: dict[str, Out] = {}
        near = self._same(rows, desk, ended) if self.threshold == 1 else self._near(rows, desk, ended)
        keys = [row.key for row in rows() if row.key not in ended]
        places = iter(near)
        for row in rows():
            if row.key in ended:
                yield ended[row.key]
            elif (first := next(places)) < 0:
                yield Out(parent=row)
            else:
                yield Out({"near": keys[first]}, "dropped", "near an earlier row", row)

    def _signed(self, sign: Callable[[str], T], rows: Rows, desk: Desk, ended: dict[str, Out]) -> Iterator[T]:
        """Yield what `sign` makes of each row's text; a row on which it fails goes into `ended`."""
        for row in rows():
            try:
                yield sign(desk.render(self.text, row, "text"))
            except OF_A_ROW as error:
                ended[row.key] = ended_by(error, row)

    def _same(self, rows: Rows, desk: Desk, ended: dict[str, Out]) -> Sequence[int]:
        """Return for each text the place of the first text with the same words, or -1 if it is the first."""
        first: dict[str, int] = {}
        signed = self._signed(lambda t: digest(" ".join(unicodedata.normalize("NFC", t).split())), rows, desk, ended)
        return [-1 if (found := first.setdefault(d, place)) == place else found for place, d in enumerate(signed)]

    def _near(self, rows: Rows, desk: Desk, ended: dict[str, Out]) -> Sequence[int]:
        """Return for each text the place of the first text that goes on and is near it, or -1."""
        import numpy as np  # takes a tenth of a second, and few recipes need it

        from interlace.text.minhash import HASHES, first_of_each, shingles, signature

        signed = list(self._signed(lambda t: signature(shingles(t, self.words)), rows, desk, ended))
        return first_of_each(np.array(signed, dtype=np.uint32).reshape(-1, HASHES), self.threshold).tolist()


class Decontaminate(Step):
    """`kind = "decontaminate"`: rows that hold an item of a benchmark end here.

        [[steps]]
        kind = "decontaminate"
        text = "{{ question }}"
        answer = "{{ answer }}"
        columns = ["question"]
        answers = "answer"
        [steps.against]
        gsm8k = "gsm8k-test.jsonl"

    How much of an item is in a row: the share of its words that lie in a run of four words which the row has too. An
    item of four words or fewer must be a sentence of the row, or, from three words on, go with its answer; an item of
    one word must be the whole row.

    Attributes:
        text: template of the row's text.
        answer: template of the row's answer; none if empty.
        against: JSONL files of items, by the benchmark's name.
        columns: the items' columns that hold their text.
        answers: the column of the items' answers; none if empty.
        threshold: coverage from which a row is dropped.
        with_answer: coverage from which it is dropped where its answer is the item's too.
    """

    kind: Literal["decontaminate"]
    text: str = Field(min_length=1)
    answer: str = ""
    against: dict[str, str] = Field(min_length=1)
    columns: tuple[str, ...] = Field(strict=False, min_length=1)
    answers: str = ""
    threshold: float = Field(default=THRESHOLD, gt=0, le=1)
    with_answer: float = Field(default=WITH_ANSWER, gt=0, le=1)

    @field_validator("columns", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    def templates(self) -> dict[str, str]:
        """Return the templates of the row's text and answer."""
        return {"text": self.text, "answer": self.answer}

    def files(self) -> tuple[str, ...]:
        """Return the files of the benchmarks."""
        return tuple(self.against.values())

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Add no column; read the benchmarks once, because a wrong one must be found before anything is paid."""
        for name, path in self.against.items():
            read_benchmark(name, folder / path, self.columns, self.answers)
        return given

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Find the benchmark item that the row holds most of, and drop the row if it holds enough of it."""
        index = desk.once(f"{self.name} index", lambda: self._index(desk.folder))
        answer = desk.render(self.answer, row, "answer") if self.answer else ""
        limits = (self.threshold, self.with_answer)
        match = index.nearest(desk.render(self.text, row, "text"), answer, *limits)
        if match is None or not judged(match, *limits):
            return [Out()]
        return [drop(f"holds an item of {match.item.benchmark}", contamination=to_columns(match))]

    def _index(self, folder: Path) -> Index:
        return Index(
            [i for n, p in self.against.items() for i in read_benchmark(n, folder / p, self.columns, self.answers)]
        )
