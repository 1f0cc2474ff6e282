"""The grid of a study: cells run several at once, each in its own process; finished cells are never run again."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, DataError, Failure, RunError
from interlace.base.files import read_json, user_path, write_file
from interlace.base.schema import read_toml
from interlace.runs.folder import RunFolder
from interlace.runs.lock import hold_folder
from interlace.runs.processes import Job, last_line, run_all
from interlace.runs.progress import Progress, Watch, silent
from interlace.study.tasks import arms
from interlace.study.tasks.arms import Shape
from interlace.study.tasks.cell import Budget, TaskCell, hardest_trained
from interlace.study.tasks.registry import task as find
from interlace.study.tasks.task import Task

Result = dict[str, Any]
MOST_SEEDS = 1 << 63


@dataclass
class TaskGrid:
    """Tasks x models x seeds in one folder.

    Attributes:
        out: the folder; each cell has a folder of its own in out/cells.
        tasks: by name, with their size and budget.
        models: names of arms, or TOML files.
        seeds: how many; learning rates are tried on the first.
        first_seed: the first of them.
        jobs: processes at once; None for one per core.
        device: the device that the cells train on.
        watch: called with how far the work is, and which cells run.
    """

    out: Path
    tasks: dict[str, tuple[Shape, Budget]]
    models: tuple[str, ...]
    seeds: int
    first_seed: int = 0
    jobs: int | None = None
    device: str = "cpu"
    watch: Watch = silent

    def __post_init__(self) -> None:
        """Check all settings before anything runs."""
        self.out = user_path(self.out, RunError)
        if self.seeds < 1:
            raise ConfigError(f"seeds: must be at least 1, got {self.seeds}")
        if not 0 <= self.first_seed <= MOST_SEEDS - self.seeds:
            raise ConfigError(f"first_seed: must lie from 0 to 2**63 less the seeds, got {self.first_seed}")
        for name, found in (("tasks", self.tasks), ("models", self.models)):
            if not found:
                raise ConfigError(f"{name}: none is named; name at least one")
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"jobs: must be at least 1, got {self.jobs}")
        if len(set(self.models)) < len(self.models):
            raise ConfigError(f"models: {', '.join(self.models)} names one twice")
        stems = [Path(model).stem for model in self.models]
        for model, stem in zip(self.models, stems, strict=True):
            if stems.count(stem) > 1:
                raise ConfigError(f"models: {model} and another are both called {stem!r} in tables; rename the file")
        for name, (shape, _) in self.tasks.items():
            for model in self.models:
                arms.config(model, shape, len(find(name).words))

    def cell(self, task: str, model: str, seed: int, rate: float) -> TaskCell:
        """Return one cell; seeds count from `first_seed`."""
        return TaskCell(task, model, self.first_seed + seed, rate, *self.tasks[task])

    def result(self, cell: TaskCell) -> Result | None:
        """Return the result of a cell, or None if it has none yet.

        Raises:
            DataError: its result is damaged.
        """
        file = self.out / "cells" / cell.name / "result.json"
        return read_result(file, cell) if file.is_file() else None

    def rate(self, task: str, model: str) -> float | None:
        """Return the learning rate that the first seed did best with, or None while some have not been tried.

        The best rate did not diverge; of those, it has the highest score at the hardest trained difficulty, then the
        highest sum over all tested difficulties, then it is the lowest rate.
        """
        rates = self.tasks[task][1].rates
        tried = {r: self.result(self.cell(task, model, 0, r)) for r in rates}
        key = str(hardest_trained(find(task)))

        def merit(rate: float) -> tuple[bool, float, float, float]:
            result = tried[rate]
            assert result is not None
            return result["diverged"] is None, result["scores"][key], sum(result["scores"].values()), -rate

        return None if None in tried.values() else max(rates, key=merit)

    def pending(self) -> list[TaskCell]:
        """Return the cells that can be run now: rates first, then the other seeds at the rate that was chosen."""
        cells = []
        for task in self.tasks:
            for model in self.models:
                rate = self.rate(task, model)
                if rate is None:
                    cells += [self.cell(task, model, 0, r) for r in self.tasks[task][1].rates]
                else:
                    cells += [self.cell(task, model, s, rate) for s in range(1, self.seeds)]
        return [c for c in cells if self.result(c) is None]

    @property
    def processes(self) -> int:
        """How many processes run at once."""
        return self.jobs or os.cpu_count() or 1

    @property
    def total(self) -> int:
        """How many cells there are."""
        return sum(len(b.rates) + self.seeds - 1 for _, b in self.tasks.values()) * len(self.models)

    def run(self) -> dict[str, Any]:
        """Run all cells that have no result, and gather; the same folder is resumed.

        Raises:
            RunError: the folder belongs to another study.
            Failure: a cell's process failed; the others' results are kept.
        """
        with hold_folder(self.out):
            return self._run()

    def _run(self) -> dict[str, Any]:
        tables = {name: {"shape": asdict(s), "budget": asdict(b)} for name, (s, b) in self.tasks.items()}
        asked = {"tasks": tables, "models": list(self.models), "seeds": self.seeds, "first_seed": self.first_seed}
        files = {Path(m).stem: read_toml(Path(m), "model") for m in self.models if m.endswith(".toml")}
        if files:  # what a file says is part of the study: cells of two versions of it must not be mixed
            asked["model_files"] = files
        RunFolder.open(self.out, asked)
        pace = GridProgress(self)
        run_all(lambda: [self.job(c) for c in self.pending()], self.processes, self.check, pace.tell)
        results = self.gather()
        write_file(self.out / "results.json", json.dumps(results, indent=2) + "\n")
        return results

    def job(self, cell: TaskCell) -> Job:
        """Return a cell as a process of its own."""
        folder = self.out / "cells" / cell.name
        cell.write(folder)
        return Job(cell.name, folder, (sys.executable, "-m", "interlace.study.tasks.cell", str(folder), self.device))

    def check(self, job: Job, status: int) -> None:
        """Check that a process has left its result."""
        if status or not (job.folder / "result.json").is_file():
            log = job.folder / "log.txt"
            raise Failure(
                f"cell {job.name}: {last_line(job.folder, status)}; see {log}; the same command runs the rest"
            )

    def gather(self) -> dict[str, Any]:
        """Return every task's table: for each model its rate, all seeds, and what was reached."""
        tasks = {}
        for name, (shape, budget) in self.tasks.items():
            task = find(name)
            models = {model: self._model(name, model) for model in self.models}
            tasks[name] = {
                "scored_by": task.scored_by,
                "trained": list(task.trained),
                "tested": list(task.tested),
                "floors": floors(task),
                "hardest_trained": hardest_trained(task),
                "shape": asdict(shape),
                "budget": asdict(budget),
                "models": models,
            }
        return {"seeds": self.seeds, "first_seed": self.first_seed, "tasks": tasks}

    def _model(self, task: str, model: str) -> dict[str, Any]:
        rate = self.rate(task, model)
        assert rate is not None
        cells = [self.cell(task, model, s, rate) for s in range(self.seeds)]
        results = [r for c in cells if (r := self.result(c)) is not None]
        curves = [self.curve(c) for c in cells]
        sweep = {r: self.result(self.cell(task, model, 0, r)) for r in self.tasks[task][1].rates}
        keys = list(results[0]["scores"])
        by_seed = {d: [r["scores"][d] for r in results] for d in keys}
        solved = [r["solved"]["step"] if r["solved"] else None for r in results]
        return {
            "learning_rate": rate,
            "sweep": {str(r): x["scores"] for r, x in sweep.items() if x is not None},
            "parameters": results[0]["parameters"],
            "scores": by_seed,
            "best": {d: max(v) for d, v in by_seed.items()},
            "median": {d: median(v) for d, v in by_seed.items()},
            "solved": solved,
            "share_solved": sum(s is not None for s in solved) / len(solved),
            "diverged": [r["diverged"] for r in results],
            "seconds": sum(r["seconds"] for r in results) / len(results),
            "curves": curves,
        }

    def curve(self, cell: TaskCell) -> list[dict[str, Any]]:
        """Return the scores of a cell during its training."""
        return read_curve(self.out / "cells" / cell.name / "metrics.jsonl", find(cell.task).tested)


class GridProgress:
    """The progress of a grid and its remaining time: a cell counts as long as others of its kind took here."""

    def __init__(self, grid: TaskGrid):
        """Begin with nothing timed."""
        self.grid = grid

    def tell(self, running: Sequence[str]) -> None:
        """Tell how far the work is."""
        grid, took = self.grid, self.seconds()
        known = [s for s in took.values() if s]
        typical = sum(known) / len(known) if known else None
        done, work, left = 0, 0.0, 0.0
        for task, (_, budget) in grid.tasks.items():
            for model in grid.models:
                each = took.get((task, model)) or typical or 1.0
                count = len(budget.rates) + grid.seeds - 1
                finished = self.finished(task, model)
                done, work = done + finished, work + count * each
                left += (count - finished) * each
        for cell in (c for c in grid.pending() if c.name in running):
            rows = grid.curve(cell)
            share = rows[-1]["step"] / cell.budget.steps if rows else 0.0
            left -= share * (took.get((cell.task, cell.model)) or typical or 1.0)
        left = max(0.0, left)
        seconds = left / grid.processes if typical else None
        label = f"{done} of {grid.total} cells"
        grid.watch(Progress(label, 1 - left / work, 1.0, seconds, ", ".join(running)))

    def finished(self, task: str, model: str) -> int:
        """Return how many cells of this task and model are done."""
        names = f"{task}-{Path(model).stem}-rate*-seed*"
        return sum((f / "result.json").is_file() for f in (self.grid.out / "cells").glob(names))

    def seconds(self) -> dict[tuple[str, str], float]:
        """Return how long cells of a task and model take: as those that are done, or by the speed of those that run."""
        found: dict[tuple[str, str], float] = {}
        for task, (_, budget) in self.grid.tasks.items():
            for model in self.grid.models:
                for folder in (self.grid.out / "cells").glob(f"{task}-{Path(model).stem}-rate*-seed*"):
                    if rows := read_curve(folder / "metrics.jsonl", find(task).tested):
                        found[task, model] = rows[-1]["seconds"] * budget.steps / rows[-1]["step"]
        return found


def read_result(file: Path, cell: TaskCell) -> Result:
    """Return the result that a cell wrote at its end.

    Raises:
        DataError: it is damaged, or another cell's.
    """
    try:
        found = read_json(file, "the result of a cell")
        good = all(found[name] == getattr(cell, name) for name in ("task", "model", "seed", "rate"))
        good = good and all(math.isfinite(found["scores"][str(d)]) for d in find(cell.task).tested)
        good = good and isinstance(found["diverged"], str | None) and isinstance(found["parameters"], int)
        good = good and (found["solved"] is None or isinstance(found["solved"]["step"], int))
        good = good and math.isfinite(found["seconds"])
    except (DataError, LookupError, TypeError):
        good = False
    if not good:
        raise DataError(f"{file}: is damaged, or another cell's; remove it, and the same command runs this cell again")
    return dict(found)


def read_curve(file: Path, tested: Sequence[int]) -> list[dict[str, Any]]:
    """Return the scores of a cell during its training, up to the first line that is incomplete or damaged."""
    rows: list[dict[str, Any]] = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
            if not (row["step"] >= 1 and row["seconds"] >= 0 and all(row["scores"][str(d)] >= 0 for d in tested)):
                break
        except (ValueError, TypeError, LookupError, RecursionError):
            break
        rows.append(row)
    return rows


def floors(task: Task) -> dict[str, dict[str, float]]:
    """Return scores that show nothing learnt, or only a part: by what earns them, then by difficulty."""
    by_difficulty = {d: task.floors(d) for d in task.tested}
    names = list(by_difficulty[task.tested[0]])
    return {name: {str(d): found[name] for d, found in by_difficulty.items()} for name in names}


def median(values: list[float]) -> float:
    """Return the middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
