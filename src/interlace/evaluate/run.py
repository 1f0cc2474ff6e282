"""Evaluate one model, or two on the same items, in a run folder: every prompt and answer is kept, and work goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.base.errors import RunError
from interlace.base.files import write_file
from interlace.checkpoint.fingerprint import fingerprint
from interlace.evaluate import texts as of_texts
from interlace.evaluate.ask import Questions, Row, answer, choose
from interlace.evaluate.figures import figures_of_task, figures_of_texts
from interlace.evaluate.judge import Judge
from interlace.evaluate.task import Task
from interlace.evaluate.texts import Texts
from interlace.model.device import facts
from interlace.model.model import HybridLM
from interlace.runs.folder import RunFolder
from interlace.runs.lines import Lines, whole_lines
from interlace.runs.lock import hold_folder
from interlace.runs.progress import Progress, Watch, silent

ITEMS, RESULTS = "items", "results.json"
DATA = "data"  # under which the figures of texts are shown
SIDES = ("first", "second")


@dataclass(frozen=True)
class Work:
    """What is to be done, by name: tasks, and texts."""

    tasks: tuple[Task, ...] = ()
    texts: Texts | None = None
    seed: int = 0

    def known(self) -> dict[str, str]:
        """Return what each of its parts depends on."""
        found = {task.name: task.known for task in self.tasks}
        return found | ({DATA: f"{self.texts.known} {self.texts.length}"} if self.texts is not None else {})

    def names(self) -> list[str]:
        """Return what figures are shown of, in order."""
        return [*([DATA] if self.texts is not None else []), *(task.name for task in self.tasks)]


def evaluate(
    checkpoints: Sequence[str],
    load: Callable[[str], HybridLM],
    work: Callable[[HybridLM], Work],
    out: Path,
    config: dict[str, Any],
    watch: Watch = silent,
) -> dict[str, Any]:
    """Evaluate one or two checkpoints in the run folder `out`, or go on there; return the results.

    Args:
        checkpoints: folders or hub ids; the second is compared with the first.
        load: returns a model, ready to be asked.
        work: given the first model, returns what is to be done.
        config: what was asked for, as run.toml holds it.
        watch: told "NAME of CHECKPOINT", items done and items in all.

    Raises:
        RunError: `out` belongs to another evaluation, or what it began with was changed.
    """
    run = RunFolder(out)
    with hold_folder(run.path):
        run.take_up(config)
        for side, checkpoint in zip(SIDES, checkpoints, strict=False):
            run.check(f"{side} checkpoint", fingerprint(checkpoint), f"{checkpoint}: the checkpoint")
        model = load(checkpoints[0])
        run.remember(machine=facts(str(model.device)))
        todo = work(model)
        for name, known in todo.known().items():
            run.check(f"task {name}", known, f"{name}: the task or its data")
        (run.path / ITEMS).mkdir(exist_ok=True)
        for side, checkpoint in zip(SIDES, checkpoints, strict=False):
            model = model if side == SIDES[0] else load(checkpoint)
            for name in todo.names():
                ask(todo, name, model, items_file(run.path, name, side), watch, f"{name} of {checkpoint}")
        found = results(run.path, checkpoints, todo)
        write_file(run.path / RESULTS, json.dumps(found, indent=2, allow_nan=False) + "\n")
        return found


def items_file(run: Path, name: str, side: str) -> Path:
    """Return the file of the items of a task that one of the models was asked."""
    return run / ITEMS / f"{name}.{side}.jsonl"


def ask(work: Work, name: str, model: HybridLM, file: Path, watch: Watch = silent, label: str = "") -> list[Row]:
    """Put a task's items to a model, batch by batch; what is in `file` already is not asked again. Return all rows."""
    known = {row["item"]: row for row in kept_rows(file)}
    batches, total = list(_batches(work, name, model)), 0
    sizes = [len(items) for items, _ in batches]
    total, done, began = sum(sizes), 0, 0
    since = time.monotonic()
    task = next((task for task in work.tasks if task.name == name), None)
    judged = task is not None and task.settings.kind == "generate"
    with closing(Lines(file)) as lines, closing(Judge(task)) if judged and task else nullcontext() as judge:
        for items, run in batches:
            if all(item in known for item in items):
                began += len(items)
            else:
                for row in run(judge):
                    if row["item"] not in known:  # a batch that was cut off is asked whole, for the same numbers
                        lines.append(row)
                        known[row["item"]] = row
            done += len(items)
            spent = time.monotonic() - since
            left = spent / (done - began) * (total - done) if done > began else None
            watch(Progress(label or name, done, total, left))
    return [known[item] for items, _ in batches for item in items]


def _batches(work: Work, name: str, model: HybridLM) -> Iterator[tuple[list[int], Callable[[Any], list[Row]]]]:
    """Yield (items, what asks them) of each batch."""
    if name == DATA and work.texts is not None:
        texts = work.texts
        for windows in of_texts.windows(texts, model):
            yield list(dict.fromkeys(n for n, _ in windows)), lambda _, w=windows: of_texts.score(texts, model, w)  # type: ignore[misc]
        return
    task = next(task for task in work.tasks if task.name == name)
    questions = Questions(task, model)
    for batch in questions.batches:
        items = [one.item.number for one in batch]
        if task.settings.kind == "choice":
            yield items, lambda _, b=batch: choose(questions, b)  # type: ignore[misc]
        else:
            yield items, lambda judge, b=batch: answer(questions, b, judge, work.seed)  # type: ignore[misc]


def kept_rows(file: Path) -> Iterator[Row]:
    """Return the rows of a file, up to a line that was cut off.

    Raises:
        RunError: a line is damaged.
    """
    fault = "is not a line that an evaluation wrote; remove the file to ask again"
    return whole_lines(file, lambda row: isinstance(row, dict) and isinstance(row.get("item"), int), RunError, fault)


def results(run: Path, checkpoints: Sequence[str], work: Work) -> dict[str, Any]:
    """Return all figures of a run whose items are all there."""
    found: dict[str, Any] = {}
    for name in work.names():
        sides = [list(kept_rows(items_file(run, name, side))) for side, _ in zip(SIDES, checkpoints, strict=False)]
        sides = [sorted(rows, key=lambda row: row["item"]) for rows in sides]
        task = next((task for task in work.tasks if task.name == name), None)
        found[name] = figures_of_texts(sides) if task is None else figures_of_task(task, sides)
    return {"checkpoints": [str(c) for c in checkpoints], "tasks": found}
