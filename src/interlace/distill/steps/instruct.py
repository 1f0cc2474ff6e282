"""Steps that make new tasks from a few: `self_instruct` and `evolve`."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from interlace.base.text import text_of
from interlace.distill.desk import Desk, Question
from interlace.distill.ledger.records import Row
from interlace.distill.steps.ask import Asking
from interlace.distill.steps.base import OF_A_ROW, Out, Rows, drop, ended_by

NUMBERED = re.compile(r"\s{0,8}\d{1,4}[.):]\s{0,8}")
MORE = """Here are some tasks:

{examples}

Write {count} new tasks. They should differ from these and from each other in topic and form, stand alone, and be \
possible to solve in writing. Answer with a numbered list of the tasks alone."""
STALE = 3  # rounds without a new task, after which the step ends

DIRECTIONS = {
    "deepen": "Ask for more depth in what it asks already, so that an expert would have to think longer.",
    "constrain": "Add one condition that makes it harder and still possible.",
    "concrete": "Replace its general notions by specific ones: names, numbers, places.",
    "steps": "Change it so that it can only be solved in several steps of reasoning.",
    "breadth": "Write another task of the same field and difficulty, on a rarer topic.",
}
EVOLVE = """Rewrite the task below. {direction} Add at most 20 words. It must stand alone, make sense and be possible \
to solve. Answer with the new task alone.

<task>
{task}
</task>"""


class SelfInstruct(Asking):
    """`kind = "self_instruct"`: new tasks from example tasks, which become examples themselves.

        [[steps]]
        kind = "self_instruct"
        teacher = "big"
        column = "task"
        count = 500

    Source: Wang et al., arXiv 2212.10560. Every request shows `shown` tasks, three in four of them seeds, and asks for
    `asked` more; one that shares more than `alike` of its runs of three words with an earlier one is not taken.

    Attributes:
        column: the column of the seeds' tasks, and of the new ones.
        count: new tasks to make.
        shown: example tasks in a request.
        asked: new tasks that a request asks for.
        alike: share of runs of words from which a task counts as like an earlier one.
        at_once: requests of a round; what a round makes is shown from the next one on.
        seeds: whether the seeds go on too.
    """

    ORDERED: ClassVar[bool] = True

    kind: Literal["self_instruct"]
    column: str
    count: int = Field(gt=0)
    shown: int = Field(default=8, gt=0)
    asked: int = Field(default=5, gt=0, le=50)
    at_once: int = Field(default=16, gt=0)
    alike: float = Field(default=0.6, gt=0, le=1)
    seeds: bool = False
    temperature: float = Field(default=1.0, ge=0)

    def draws(self) -> bool:
        """Return True: the tasks that a request shows are drawn."""
        return True

    def frame_bytes(self, row: Mapping[str, Any]) -> int:
        """Return how many bytes the shown tasks and the words around them take."""
        return len(MORE) + self.shown * (len(text_of(row.get(self.column)).encode("utf-8", "replace")) + 4)

    def reads(self) -> dict[str, str]:
        """Return the column of the seeds' tasks."""
        return {"column": self.column}

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Return the task's column alone: new tasks have no other columns of the seeds."""
        return frozenset({self.column})

    def requests(self, rows: int) -> int:
        """Return the requests needed if every answer is a list of new tasks."""
        return -(-self.count // self.asked)

    def fan(self, rows: int) -> int:
        """Return the number of new tasks, and of the seeds if they go on."""
        return self.count + (rows if self.seeds else 0)

    async def all(self, rows: Rows, desk: Desk) -> AsyncIterator[Out]:
        """Make tasks round after round; the same seed and the same answers make the same tasks."""
        from interlace.text.minhash import shingles  # imports numpy, which few recipes need

        given = [row.values for row in rows()]
        seeds = [text_of(values.get(self.column)) for values in given]
        pool, known = list(seeds), [shingles(s, 3) for s in seeds]
        for seed in seeds if self.seeds else ():
            yield Out({self.column: seed})
        made, stale, number, framed = 0, 0, 0, self._framed(given, desk)
        while made < self.count and stale < STALE and pool:
            wanted = min(self.at_once, -(-(self.count - made) // self.asked))
            prompts = [self._prompt(seeds, pool[len(seeds) :], desk.seed, number + i) for i in range(wanted)]
            row = Row(0, f"{number:09}", "ok", "", framed)
            number += wanted
            questions = [Question(self.messages(p, row, desk), self.sampling()) for p in prompts]
            answers = await desk.together(desk.ask(self.chosen(row), q) for q in questions)
            before = made
            for answer in answers:
                if (end := self.ended(answer)) is not None:
                    yield replace(end, requests=answer.keys)
                    continue
                tasks = listed(answer.text)
                if not tasks:
                    yield Out({}, "unparsable", "the answer is no numbered list", requests=answer.keys)
                for place, task in enumerate(tasks):
                    of = () if place else answer.keys
                    found = shingles(task, 3)
                    if made >= self.count:
                        yield Out({self.column: task}, "dropped", "more than were wanted", requests=of)
                    elif any(len(found & k) > self.alike * len(found | k) for k in known):
                        yield Out({self.column: task}, "dropped", "like an earlier task", requests=of)
                    else:
                        known.append(found)
                        pool.append(task)
                        made += 1
                        yield Out({self.column: task}, requests=of)
            stale = 0 if made > before else stale + 1
        if made < self.count:
            desk.notes["short"] = f"{made} of {self.count} tasks: {STALE} rounds in a row made no new one"

    def _framed(self, given: list[dict[str, Any]], desk: Desk) -> dict[str, Any]:
        """Return the columns for the system's turn: those of the first seed on which its template does not fail."""
        failed: Exception | None = None
        for values in given:
            try:
                desk.render(self.system, values, "system")
                return values
            except OF_A_ROW as error:
                ended_by(error)
                failed = error
        if failed is not None:
            raise failed
        return {}

    def _prompt(self, seeds: list[str], new: list[str], seed: int, number: int) -> str:
        draw = random.Random(f"{seed} {self.name} {number}")
        own = min(len(new), self.shown // 4)
        examples = draw.sample(new, own) + draw.sample(seeds, min(len(seeds), self.shown - own))
        draw.shuffle(examples)
        listed = "\n".join(f"{i}. {e}" for i, e in enumerate(examples, start=1))
        return MORE.format(examples=listed, count=self.asked)


class Evolve(Asking):
    """`kind = "evolve"`: tasks made harder or rarer, some rounds in a row.

        [[steps]]
        kind = "evolve"
        teacher = "big"
        column = "task"
        rounds = 2

    Source: Xu et al., WizardLM, arXiv 2304.12244, whose directions these follow in other words.

    Attributes:
        column: the column of the task.
        rounds: how often it is rewritten; each round's direction is drawn.
        directions: those that are drawn from: deepen, constrain, concrete, steps, breadth.
        every: whether the tasks of all rounds go on, each as a row, and not the last alone.
    """

    kind: Literal["evolve"]
    column: str
    rounds: int = Field(default=1, gt=0, le=10)
    directions: tuple[Literal["deepen", "constrain", "concrete", "steps", "breadth"], ...] = Field(
        default=("deepen", "constrain", "concrete", "steps", "breadth"), strict=False, min_length=1
    )
    every: bool = False

    def draws(self) -> bool:
        """Return True: directions are drawn."""
        return True

    def frame_bytes(self, row: Mapping[str, Any]) -> int:
        """Return how many bytes the task and the words around it take."""
        return len(EVOLVE) + 100 + len(text_of(row.get(self.column)).encode("utf-8", "replace"))

    def reads(self) -> dict[str, str]:
        """Return the column of the task."""
        return {"column": self.column}

    def makes(self, given: frozenset[str], folder: Path) -> frozenset[str]:
        """Add a column that names the directions of the task's rounds."""
        return given | {self.column, f"{self.column}_evolved"}

    def requests(self, rows: int) -> int:
        """Return one request for each round."""
        return rows * self.rounds

    def fan(self, rows: int) -> int:
        """Return one row, or one for each round."""
        return rows * (self.rounds if self.every else 1)

    async def one(self, row: Row, desk: Desk) -> list[Out]:
        """Rewrite the task round after round.

        A round that fails ends the row; with `every`, the rounds before it go on.
        """
        task = text_of(row.values.get(self.column))
        outs: list[Out] = []
        way: list[str] = []
        draw = random.Random(f"{desk.seed} {self.name} {row.key}")
        for _ in range(self.rounds):
            way.append(draw.choice(self.directions))
            prompt = EVOLVE.format(direction=DIRECTIONS[way[-1]], task=task)
            answer = await desk.ask(self.chosen(row), Question(self.messages(prompt, row, desk), self.sampling()))
            end = self.ended(answer)
            if end is None and answer.text.strip() == task.strip():
                end = drop("the task came back as it was")
            if end is not None:
                return [*outs, end] if self.every else [end]
            task = answer.text.strip()
            outs.append(Out({self.column: task, f"{self.column}_evolved": " ".join(way)}))
        return outs if self.every else outs[-1:]


def listed(text: str) -> list[str]:
    """Return the items of a numbered list, each as one line; text before the first number is not an item."""
    items: list[list[str]] = []
    for line in text.split("\n"):
        if number := NUMBERED.match(line):
            items.append([line[number.end() :]])
        elif items:
            items[-1].append(line)
    return [words for item in items if (words := " ".join(" ".join(item).split()))]
