"""Judge answers: numbers, expressions, JSON, patterns and programs, in processes that can be stopped."""

from __future__ import annotations

from typing import NamedTuple

from interlace.base.errors import BackendUnavailable
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
        right: whether it is right; False where nothing could be proved.
        why: why it is not right.
        well_formed: whether it holds the task's format; None where the task has none.
        judged: whether something could be proved.
    """

    right: bool
    why: str
    well_formed: bool | None = None
    judged: bool = True


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
        self._formats = Worker(CHECKS, settings.seconds)

    def __call__(self, item: Item, answer: str) -> Verdict:
        """Judge an answer to an item.

        Raises:
            ConfigError: the task's template of what is judged fails.
        """
        well, judged = self._well_formed(answer), True
        text = self._judged(item, answer)
        try:
            right, why = self._check(item, text)
        except OutOfBounds as error:
            right, why = False, f"the check {error}"
        except (programs.NothingProved, Refused) as error:
            right, why, judged = False, str(error), self.task.settings.by == "numeric"
        return Verdict(right, why, well, judged)

    def _well_formed(self, answer: str) -> bool | None:
        if not self.task.settings.format:
            return None
        try:
            found, _ = self._formats.ask({"do": "pattern", "text": answer, "pattern": self.task.settings.format})
            return bool(found)
        except OutOfBounds:
            return False

    def _judged(self, item: Item, answer: str) -> str:
        template = self.task.settings.answer
        if template == "{{ answer }}":
            return answer
        values = {"prompt": item.prompt, **item.row, "row": dict(item.row), "answer": answer}
        return self._templates.render(template, values, f"{self.task.name}: answer")

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
        for one in (self._templates, self._worker, self._formats):
            one.close()
