"""The step that checks answers: `kind = "verify"`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from interlace.base.errors import BackendUnavailable
from interlace.distill.desk import Desk
from interlace.distill.ledger.records import Row
from interlace.distill.steps.ask import CHECKS
from interlace.distill.steps.base import Out, Step
from interlace.sandbox import cage
from interlace.sandbox.worker import OutOfBounds, Refused
from interlace.verify import programs
from interlace.verify.code import code_of
from interlace.verify.methods import NEEDS, Method
from interlace.verify.structure import read_schema

SYMBOLS = "interlace.verify.symbols"


class Missing(Exception):
    """A row has nothing that its answer can be compared with."""


class Verify(Step):
    """`kind = "verify"`: whether an answer is right.

        [[steps]]
        kind = "verify"
        by = "numeric"
        gold = "{{ gold }}"

        [[steps]]
        kind = "verify"
        by = "python"
        tests = "{{ tests }}"                 # run against the answer's code, in a cage each

    Attributes:
        by: "exact" (the same text, spaces at the ends aside), "numeric" (both end in the same number), "symbolic"
            (equal expressions), "schema" (JSON that fits), "pattern" (a regular expression is found), or "python" (the
            tests come to their end, an assertion has held and none has failed, even where the tests catch its error;
            they and the answer's code are locked in, apart).
        answer: template of what is checked.
        gold: template of what is right.
        tolerance: the relative tolerance of numbers; 0 compares exactly.
        tests: template of a program that knows what the answer's code defines: assertions, test functions, unittest.
        schema: JSON schema, or a file with one.
        pattern: the regular expression; "." stands for ends of lines too.
        wrong: "drop" ends rows whose answer is wrong, "keep" lets them go on.
        into: the column that says whether it is right; `INTO_why` says why not.
        seconds: the time for one check; an answer that takes longer is wrong.
        memory_mb: the memory for a program, in MiB.
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
        """Return the templates of the answer and of what it is compared with."""
        return {"answer": self.answer, "gold": self.gold, "tests": self.tests}

    def files(self) -> tuple[str, ...]:
        """Return the file of the schema, if the schema is in a file."""
        return (self.schema_,) if isinstance(self.schema_, str) else ()

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Add the columns of the verdict and of the reason.

        A wrong schema, or a machine on which the cage does not close, is found here, before anything is paid.
        """
        read_schema(self.schema_, folder, f"steps.{self.name}")
        if self.by == "python" and (why := cage.available()):
            raise BackendUnavailable(why)
        return given | {self.into, f"{self.into}_why"}

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Check one row; the row ends if there is nothing to compare its answer with, or if the check itself fails."""
        try:
            right, why = await self._check(row, desk)
        except Refused as error:
            return [Out({}, "failed", f"the check failed: {error}")]
        except Missing as error:
            return [Out({}, "dropped", f"{error}")]
        values = {self.into: right, f"{self.into}_why": why}
        if right or self.wrong == "keep":
            return [Out(values)]
        return [Out(values, "dropped", f"wrong by {self.by}: {why.split(':')[0]}")]

    async def _check(self, row: Row, desk: Desk) -> tuple[bool, str]:
        answer = desk.render(self.answer, row, "answer")
        if self.by == "python":
            limits = cage.CageLimits(self.seconds, self.memory_mb << 20)
            tests = self._known("tests", row, desk)
            try:
                outcome = await desk.on_a_core(programs.check, code_of(answer), tests, limits)
            except programs.NothingProved as error:
                raise Missing(str(error)) from None
            return outcome.kind == "passed", f"{outcome.kind}: {outcome.why}" if outcome.kind != "passed" else ""
        if self.by in ("exact", "numeric", "symbolic"):
            gold = self._known("gold", row, desk)
            if self.by == "exact":
                return (True, "") if answer.strip() == gold.strip() else (False, "another text")
            if self.by == "numeric":
                request = {"do": "number", "answer": answer, "gold": gold, "tolerance": self.tolerance}
                return await self._worked(CHECKS, request, desk)
            return await self._worked(SYMBOLS, {"answer": answer, "gold": gold}, desk)
        if self.by == "pattern":
            return await self._worked(CHECKS, {"do": "pattern", "text": answer, "pattern": self.pattern}, desk)
        schema = desk.once(f"{self.name} schema", lambda: read_schema(self.schema_, desk.folder, f"steps.{self.name}"))
        _, why = await self._worked(CHECKS, {"do": "fit", "text": answer, "schema": schema}, desk)
        return not why, why

    async def _worked(self, module: str, request: dict[str, Any], desk: Desk) -> tuple[bool, str]:
        """Return (right, why) from a worker; an answer that takes it too long is wrong."""
        try:
            right, why = await desk.work(module, request, self.seconds)
        except OutOfBounds as error:
            return False, f"the check {error}"
        except Refused as error:
            if self.by == "numeric":
                return False, f"cannot be read: {error}"
            raise
        return bool(right), str(why)

    def _known(self, field: str, row: Row, desk: Desk) -> str:
        """Return the text that an answer is compared with.

        Raises:
            Missing: the text is empty.
        """
        text = desk.render(getattr(self, field), row, field)
        if not text.strip():
            raise Missing(f"{field} is empty")
        return text
