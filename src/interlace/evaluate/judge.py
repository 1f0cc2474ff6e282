"""Judge answers: numbers, expressions, JSON, patterns and programs, in processes that can be stopped."""

from __future__ import annotations

import re
from typing import NamedTuple

from interlace.base.errors import BackendUnavailable, ConfigError
from interlace.evaluate.task import Item, Task
from interlace.sandbox import cage
from interlace.sandbox.templates import Templates
from interlace.sandbox.worker import OutOfBounds, Refused, Worker
from interlace.verify import programs
from interlace.verify.code import code_of

CHECKS, SYMBOLS = "interlace.verify.child", "interlace.verify.symbols"


class Verdict(NamedTuple):
    """What is said of an answer.

    Attributes:
        right: None where nothing could be said.
        why: why it is not right, or why nothing could be said.
        well_formed: whether it holds the task's format; None where the task has none.
    """

    right: bool | None
    why: str
    well_formed: bool | None = None


class Judge:
    """Judges the answers of one task."""

    def __init__(self, task: Task):
        """Begin with no process.

        Raises:
            BackendUnavailable: the programs of answers cannot be locked in on this machine.
        """
        self.task, settings = task, task.settings
        if settings.by == "python" and (why := cage.available()):
            raise BackendUnavailable(why)
        self._templates = Templates()
        self._worker = Worker(SYMBOLS if settings.by == "symbolic" else CHECKS, settings.seconds)

    def __call__(self, item: Item, answer: str) -> Verdict:
        """Judge an answer to an item."""
        settings = self.task.settings
        well = re.search(settings.format, answer, re.DOTALL) is not None if settings.format else None
        try:
            right, why = self._check(item, self._judged(item, answer))
        except OutOfBounds as error:
            right, why = False, f"the check {error}"
        except (programs.NothingProved, Refused) as error:
            if settings.by == "numeric":
                right, why = False, f"cannot be read: {error}"
            else:
                right, why = None, str(error)
        return Verdict(right, why, well)

    def _judged(self, item: Item, answer: str) -> str:
        template = self.task.settings.answer
        if template == "{{ answer }}":
            return answer
        try:
            return self._templates.render(template, {**item.row, "prompt": item.prompt, "answer": answer}, "answer")
        except ConfigError as error:
            raise Refused(str(error)) from None

    def _check(self, item: Item, answer: str) -> tuple[bool, str]:
        settings = self.task.settings
        if settings.by == "python":
            limits = cage.CageLimits(settings.seconds, settings.memory_mb << 20)
            outcome = programs.check(code_of(answer), item.tests, limits)
            passed = outcome.kind == "passed"
            return passed, "" if passed else f"{outcome.kind}: {outcome.why}"
        if settings.by == "exact":
            return (True, "") if answer.strip() == item.gold.strip() else (False, "another text")
        if settings.by == "schema":
            _, why = self._worker.ask({"do": "fit", "text": answer, "schema": self.task.schema})
            return not why, str(why)
        if settings.by == "numeric":
            request = {"do": "number", "answer": answer, "gold": item.gold, "tolerance": settings.tolerance}
        elif settings.by == "pattern":
            request = {"do": "pattern", "text": answer, "pattern": settings.pattern}
        else:
            request = {"answer": answer, "gold": item.gold}
        right, why = self._worker.ask(request)
        return bool(right), str(why)

    def close(self) -> None:
        """End its processes."""
        self._templates.close()
        self._worker.close()
