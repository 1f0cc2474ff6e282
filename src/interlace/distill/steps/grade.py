"""The step that grades by a rubric: `kind = "grade"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from interlace.base.schema import Closed
from interlace.distill.desk import Desk, Question
from interlace.distill.ledger.records import Row
from interlace.distill.steps.ask import Asking
from interlace.distill.steps.base import Out, drop
from interlace.distill.steps.marks import fold, read_marks

JUDGE = """You grade an answer by the criteria below. Judge the answer as it stands, not what its writer may have meant.

{criteria}

For each criterion give a whole number from 0 (not met at all) to {levels} (met fully).

<task>
{task}
</task>

<answer>
{answer}
</answer>

Answer with JSON alone: {form}"""
AGAIN = "That cannot be used: {wrong}. Answer with JSON alone: {form}"
SHOWN = 4000  # characters of an unusable answer that are shown to the judge again, its last


class Criterion(Closed):
    """One line of a rubric.

    Attributes:
        name: a short word; the key of the judge's answer.
        text: what to look for.
        weight: how much it counts; negative for a fault, whose presence takes away.
    """

    name: str = Field(pattern=r"^[A-Za-z]\w*$")
    text: str = Field(min_length=1)
    weight: float = Field(default=1.0)

    @field_validator("weight")
    @classmethod
    def _counts(cls, value: float) -> float:
        if value == 0:
            raise ValueError("must not be 0: a criterion that does not count has no place in a rubric")
        return value


class Grade(Asking):
    """`kind = "grade"`: a score from 0 to 1 by a rubric, given by one judge or several.

        [[steps]]
        kind = "grade"
        teacher = "judge"                  # several: each grades every row, and their agreement is reported
        task = "{{ question }}"
        answer = "{{ answer }}"
        least = 0.7
        [[steps.criteria]]
        name = "correct"
        text = "Every statement is true."
        weight = 3
        [[steps.criteria]]
        name = "padding"
        text = "The answer holds sentences that say nothing."
        weight = -1

    The score is sum(weight x level) over the criteria, brought to 0 .. 1: 0 where no merit and every fault is seen, 1
    where every merit and no fault is. Marks are read from JSON of any shape, also inside prose, from tables, and from
    lines such as "correct: 3"; the last one counts. What a judge leaves out is missing, never 0: it is asked for again,
    and told what was wrong. A row whose grade stays incomplete ends as "unparsable".

    Attributes:
        task, answer: templates of what was asked, and what is graded.
        criteria: the rubric.
        jointly: one request for all criteria; false asks for each alone.
        levels: the highest mark.
        tries: how often a grade that is missing is asked for.
        least: rows with a lower score end here.
        into: the column of the score; `INTO_marks` holds each judge's marks.
    """

    kind: Literal["grade"]
    task: str = ""
    answer: str = "{{ answer }}"
    criteria: tuple[Criterion, ...] = Field(strict=False, min_length=1)
    jointly: bool = True
    levels: int = Field(default=4, gt=0, le=100)
    tries: int = Field(default=3, gt=0)
    least: float = Field(default=0.0, ge=0, le=1)
    into: str = "score"
    temperature: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _names(self) -> Grade:
        names = [fold(c.name) for c in self.criteria]
        if len(set(names)) < len(names):
            twice = [c.name for c in self.criteria if names.count(fold(c.name)) > 1]
            raise ValueError(f"criteria: two are called {twice[0]!r} (case and underscores do not count); rename one")
        if isinstance(self.teacher, dict):
            raise ValueError("teacher: judges have no weights; name one, or several who all grade")
        return self

    def templates(self) -> dict[str, str]:
        """Return the templates of all that the judge is shown."""
        return {"system": self.system, "task": self.task, "answer": self.answer}

    def frame_bytes(self, row: Mapping[str, Any]) -> int:
        """Return how many bytes the rubric and the words around the graded text take."""
        rubric = sum(len(f"{c.name}: {c.text}".encode()) for c in self.criteria)
        return len(JUDGE) + (rubric if self.jointly else rubric // len(self.criteria)) + 20 * len(self.criteria)

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Add the columns of the score and of the marks."""
        return given | {self.into, f"{self.into}_marks"}

    def requests(self, rows: int) -> int:
        """Return one request for each judge, or for each judge and criterion."""
        return rows * len(self.teacher) * (1 if self.jointly else len(self.criteria))

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Ask every judge; the score is the mean of theirs."""
        shown = {name: desk.render(getattr(self, name), row, name) for name in ("task", "answer")}
        graded = await desk.together(self._judge(j, shown, row, desk) for j in self.asks())
        marks = {judge: given for judge, (given, _) in zip(self.asks(), graded, strict=True)}
        for judge, (given, error) in zip(self.asks(), graded, strict=True):
            missing = [c.name for c in self.criteria if c.name not in given]
            if missing:
                why = f"judge {judge} gave no mark for {missing[0]} in {self.tries} tries"
                why += f" ({error})" if error else ""
                return [Out({f"{self.into}_marks": marks}, "unparsable", why)]
        score = sum(self.score(m) for m in marks.values()) / len(marks)
        values: dict[str, Any] = {self.into: round(score, 6), f"{self.into}_marks": marks}
        return [drop(f"{self.into} below {self.least:g}", **values) if score < self.least else Out(values)]

    def score(self, marks: dict[str, int]) -> float:
        """Return the score from 0 to 1 that one judge's marks give."""
        earned = sum(c.weight * marks[c.name] / self.levels for c in self.criteria)
        worst = sum(min(c.weight, 0.0) for c in self.criteria)
        return (earned - worst) / sum(abs(c.weight) for c in self.criteria)

    async def _judge(self, judge: str, shown: dict[str, str], row: Row, desk: Desk) -> tuple[dict[str, int], str]:
        """Return (a judge's marks by criterion, the last error); marks that the judge did not give are missing."""
        groups = [self.criteria] if self.jointly else [(c,) for c in self.criteria]
        parts = await desk.together(self._marks(judge, group, shown, row, desk) for group in groups)
        errors = [error for _, error in parts if error]
        return {name: mark for part, _ in parts for name, mark in part.items()}, (errors or [""])[-1]

    async def _marks(
        self, judge: str, criteria: tuple[Criterion, ...], shown: dict[str, str], row: Row, desk: Desk
    ) -> tuple[dict[str, int], str]:
        listed = "\n".join(f"- {c.name}: {c.text}" for c in criteria)
        prompt = JUDGE.format(criteria=listed, levels=self.levels, form=self._shown(criteria), **shown)
        first = self.messages(prompt, row, desk)
        found: dict[str, int] = {}
        messages, error = first, ""
        for attempt in range(self.tries):
            left = [c for c in criteria if c.name not in found]
            question = Question(messages, self.sampling(), self._form(left), attempt)
            answer = await desk.ask((judge,), question)
            messages, error = first, answer.error
            if answer.state != "ok":
                continue
            marks, wrong = read_marks(answer.text, [c.name for c in left], self.levels)
            found |= marks
            if not wrong:
                break
            said = "; ".join(f"{name}: {why}" for name, why in wrong.items())
            missing = [c for c in left if c.name in wrong]
            messages = (
                *first,
                {"role": "assistant", "content": answer.text[-SHOWN:]},
                {"role": "user", "content": AGAIN.format(wrong=said, form=self._shown(missing))},
            )
        return found, error

    def _form(self, criteria: Sequence[Criterion]) -> dict[str, Any]:
        """Return the JSON schema of the marks."""
        mark = {"type": "integer", "minimum": 0, "maximum": self.levels}
        return {
            "type": "object",
            "properties": {c.name: mark for c in criteria},
            "required": [c.name for c in criteria],
            "additionalProperties": False,
        }

    def _shown(self, criteria: Sequence[Criterion]) -> str:
        """Return the form of the marks as a judge is shown it."""
        return "{" + ", ".join(f'"{c.name}": 0..{self.levels}' for c in criteria) + "}"


def agreement(pairs: list[tuple[int, int]], levels: int) -> dict[str, float]:
    """Measure how far two judges agree on one criterion.

    pairs: (mark of the first judge, mark of the second) for each row.

    Returns:
        "same": share of equal marks; "kappa": Cohen's with quadratic weights (1968): 1 for equal marks, 0 for what
        chance gives; 1 if both always give the same single mark.
    """
    total = len(pairs)
    same = sum(a == b for a, b in pairs) / total
    seen = sum((a - b) ** 2 for a, b in pairs) / total
    left = [sum(a == k for a, _ in pairs) / total for k in range(levels + 1)]
    right = [sum(b == k for _, b in pairs) / total for k in range(levels + 1)]
    chance = sum(p * q * (i - j) ** 2 for i, p in enumerate(left) for j, q in enumerate(right))
    return {"same": same, "kappa": 1 - seen / chance if chance else 1.0}
