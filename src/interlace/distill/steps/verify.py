"""The step that checks answers: `kind = "verify"`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from interlace.base.worker import OutOfBounds, Refused
from interlace.distill.desk import Desk
from interlace.distill.ledger import Row
from interlace.distill.steps.ask import read_schema
from interlace.distill.steps.base import Out, Step
from interlace.distill.verify import cage
from interlace.distill.verify.numbers import same_number

CHILD = "interlace.distill.verify.child"
FENCE = re.compile(r"^\s*(```+|~~~+)[ \t]*([\w+-]*)")
PYTHON = ("python", "py", "python3")
NEEDS = {
    "exact": "gold",
    "numeric": "gold",
    "symbolic": "gold",
    "schema": "schema",
    "pattern": "pattern",
    "python": "tests",
}

Method = Literal["exact", "numeric", "symbolic", "schema", "pattern", "python"]


class Verify(Step):
    """`kind = "verify"`: whether an answer is right.

        [[steps]]
        kind = "verify"
        by = "numeric"
        gold = "{{ gold }}"

        [[steps]]
        kind = "verify"
        by = "python"
        tests = "{{ tests }}"                 # run after the answer's code, in a cage

    Attributes:
        by: "exact" (the same text, spaces at the ends aside), "numeric" (both end in the same number), "symbolic"
            (equal expressions), "schema" (JSON that fits), "pattern" (a regular expression is found), or "python" (the
            answer's code and then the tests run to their end, locked in).
        answer: template of what is checked.
        gold: template of what is right.
        tolerance: relative, of numbers; 0 compares exactly.
        tests: template of a program that goes on after the answer's code, such as assertions.
        wrong: "drop" ends rows whose answer is wrong, "keep" lets them go on.
        into: the column that says whether it is right; `INTO_why` says why not.
        seconds, memory_mb: for one check.
    """

    kind: Literal["verify"]
    by: Method
    answer: str = "{{ answer }}"
    gold: str = ""
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema")
    pattern: str = ""
    tests: str = ""
    wrong: Literal["drop", "keep"] = "drop"
    into: str = "right"
    seconds: float = Field(default=5.0, gt=0)
    memory_mb: int = Field(default=512, ge=64)

    @model_validator(mode="after")
    def _whole(self) -> Verify:
        need = NEEDS[self.by]
        if not (self.schema_ if need == "schema" else getattr(self, need)):
            raise ValueError(f"{need}: is needed to verify by {self.by!r}")
        if self.by == "pattern":
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern: is no regular expression: {error}") from None
        return self

    def templates(self) -> dict[str, str]:
        """Of the answer, and of what it is held against."""
        return {"answer": self.answer, "gold": self.gold, "tests": self.tests}

    def files(self) -> tuple[str, ...]:
        """The schema's, if it is a file."""
        return (self.schema_,) if isinstance(self.schema_, str) else ()

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """The verdict, and why."""
        return given | {self.into, f"{self.into}_why"}

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Check one row."""
        right, why = await self._check(row, desk)
        values = {self.into: right, f"{self.into}_why": why}
        if right or self.wrong == "keep":
            return [Out(values)]
        return [Out(values, "dropped", f"wrong by {self.by}: {why.split(':')[0]}")]

    async def _check(self, row: Row, desk: Desk) -> tuple[bool, str]:
        answer = desk.render(self.answer, row, "answer")
        if self.by == "python":
            limits = cage.Limits(self.seconds, self.memory_mb << 20)
            program = f"{code_of(answer)}\n\n{desk.render(self.tests, row, 'tests')}\n"
            outcome = await desk.on_a_core(cage.run, program, limits)
            return outcome.kind == "passed", f"{outcome.kind}: {outcome.why}" if outcome.kind != "passed" else ""
        if self.by in ("exact", "numeric", "symbolic"):
            gold = desk.render(self.gold, row, "gold")
            if self.by == "exact":
                return (True, "") if answer.strip() == gold.strip() else (False, "another text")
            if self.by == "numeric":
                return same_number(answer, gold, self.tolerance)
            request: dict[str, Any] = {"do": "symbolic", "answer": answer, "gold": gold}
        elif self.by == "schema":
            request = {"do": "schema", "text": answer, "schema": read_schema(self.schema_, desk.folder)}
        else:
            request = {"do": "pattern", "text": answer, "pattern": self.pattern}
        try:
            right, why = await desk.work(CHILD, request, self.seconds)
        except (OutOfBounds, Refused) as error:
            return False, f"{error}"
        return bool(right), str(why)


def code_of(answer: str) -> str:
    """The fenced blocks of Python in an answer, those without a language where none says Python, or all of the answer.

    Sessions (">>> ") are left out. The last block may be open, as in an answer that begins in it.
    """
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in answer.split("\n"):
        line = line.removesuffix("\r")
        mark = FENCE.match(line)
        if mark and (not fence or (mark[1].startswith(fence) and not mark[2])):
            if not fence:
                blocks.append((mark[2].lower(), []))
            fence = "" if fence else mark[1]
        elif fence:
            blocks[-1][1].append(line)
    for languages in (PYTHON, ("",)):
        found = [b for language, b in blocks if language in languages and not any(x.startswith(">>> ") for x in b)]
        if found:
            return "\n\n".join("\n".join(b) for b in found)
    return "" if blocks else answer
