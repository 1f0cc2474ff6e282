"""Formal tasks as prompts for language models: solved examples in words, then one to solve by a choice of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interlace.base.errors import ConfigError, nearest
from interlace.evaluate.task import Item, Task, TaskSettings
from interlace.study.tasks.registry import TASKS

FORMAL = ("parity", "arithmetic", "arithmetic_brackets", "z60", "s3", "a5", "s5", "formula")  # one answer at the end
SHOTS = 8
EACH = 40  # items of each difficulty
MOST = 8  # choices
MARKS = (" ->", " =")  # that an answer stands behind


def formal(names: Sequence[str], seed: int, each: int = EACH) -> list[Task]:
    """Return formal tasks as choices; groups are difficulties.

    Raises:
        ConfigError: there is no such task.
    """
    found = []
    for name in names:
        if name not in FORMAL:
            raise ConfigError(f"--suites: there is no formal task '{name}'; {nearest(name, FORMAL)}")
        task, items = TASKS[name], list[Item]()
        for difficulty in sorted({task.trained[0], task.trained[len(task.trained) // 2], task.trained[-1]}):
            draw = np.random.default_rng([seed, difficulty])
            for sample in task.test_set(difficulty, each):
                shots = [task.sample(draw, difficulty, test=False) for _ in range(SHOTS)]
                solved = "\n".join(f"{task.text(one)}" for one in shots)
                question, right = _cut(task.text(sample))
                answers = {right}
                while len(answers) < MOST and (more := _another(task, draw, difficulty, answers)):
                    answers.add(more)
                choices = tuple(sorted(answers))
                items.append(
                    Item(
                        len(items),
                        f"{solved}\n{question}",
                        (),
                        choices,
                        (choices.index(right),),
                        group=str(difficulty),
                    )
                )
        settings = TaskSettings.model_validate(
            {"name": name, "kind": "choice", "data": "-", "prompt": "-", "choices": ["-"], "right": "-"}
        )
        found.append(Task(f"formal-{name}", settings, tuple(items), f"{name} {seed} {each}"))
    return found


def _another(task: Any, draw: np.random.Generator, difficulty: int, known: set[str]) -> str:
    """Return the answer of another problem that is not known yet; "" if none is found soon."""
    for _ in range(50):
        _, answer = _cut(task.text(task.sample(draw, difficulty, test=False)))
        if answer not in known:
            return answer
    return ""


def _cut(text: str) -> tuple[str, str]:
    """Return (the question with its mark, the answer)."""
    end = max(text.rfind(mark) + len(mark) for mark in MARKS)
    return text[:end], text[end:].strip()
