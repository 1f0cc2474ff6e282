"""Run a ladder: rates first, then every seed of every rung, in processes or as a job array."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from interlace.base.errors import ConfigError, Failure, RunError
from interlace.base.files import user_path, write_file
from interlace.base.schema import validate
from interlace.data.batches import Batches
from interlace.data.library import sources as standard_library
from interlace.data.sources import Sources
from interlace.runs.folder import RunFolder
from interlace.runs.lock import hold_folder
from interlace.runs.processes import Job, last_line, run_all
from interlace.runs.progress import Progress, Watch, silent
from interlace.study.ladder.estimate import Cost, costs, runs, totals
from interlace.study.ladder.gather import FACTS, RunOutcome, last_step, outcome, read_facts, write_results
from interlace.study.ladder.plan import Ladder, LadderCell
from interlace.study.ladder.rates import best_rate, rate_at
from interlace.train.corpus import check_fit, check_inputs, open_corpus
from interlace.train.recipe import DataSettings, Recipe

STANDARD_LIBRARY = "the source of Python's standard library"
CHILD = "interlace.study.ladder.child"
SLURM = """#!/bin/bash
#SBATCH --job-name=ladder
#SBATCH --array=1-{count}
#SBATCH --cpus-per-task=1
#SBATCH --output={logs}/%A-%a.txt
# Each task is one run on one thread; a task that is started again goes on from its last checkpoint.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
cd {here}
sed -n "${{SLURM_ARRAY_TASK_ID}}p" {file} | bash
"""
LOCAL = """#!/bin/bash
# All runs, {jobs} at once on one thread each; started again, it goes on from the last checkpoints.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
cd {here}
xargs -P {jobs} -d '\\n' -n 1 bash -c < {file}
"""


@dataclass
class LadderRun:
    """A ladder in its folder.

    Attributes:
        out: the folder: run.toml, data/, cells/, results.csv, ladder.json.
        jobs: processes at once, one thread each; None for one per core.
        device: the device that the runs train on.
        watch: called with how the text is prepared, how far the work is, and which runs are active.
    """

    ladder: Ladder
    out: Path
    jobs: int | None = None
    device: str = "cpu"
    watch: Watch = silent
    read: dict[str, tuple[int, RunOutcome | None]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check the folder and the number of processes."""
        self.out = user_path(self.out, RunError)
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"jobs: must be at least 1, got {self.jobs}")

    @property
    def processes(self) -> int:
        """How many processes run at once."""
        return self.jobs or os.cpu_count() or 1

    def open(self) -> None:
        """Open the folder, prepare its text, and check that the text is large enough.

        Raises:
            RunError: the folder belongs to another ladder.
            DataError, ConfigError: the text cannot be used, or has more tokens than the models know.
        """
        self.check()
        fresh = not RunFolder(self.out).file.is_file()
        run = RunFolder.open(self.out, self.ladder.raw)
        try:
            self._open_text(run)
        except BaseException:
            if fresh:
                run.withdraw()
            raise

    def check(self) -> None:
        """Check whether the ladder could begin, before anything is written; one that has begun is only resumed.

        Raises:
            RunError: the folder belongs to another ladder.
            DataError, ConfigError: the text or the tokenizer is not there, or does not fit a model.
        """
        run = RunFolder(self.out)
        if run.belongs_to(self.ladder.raw) and run.has_begun():
            return
        for recipe in self._recipes(self.settings):
            check_inputs(recipe, self._own_text())

    def _recipes(self, data: DataSettings) -> list[Recipe]:
        """Return one run for each group of models that can read the same text, the largest last."""
        rungs = sorted(self.ladder.rungs.values(), key=lambda r: r.target)
        alike = {(r.config.vocabulary, r.config.max_positions, r.rows): r for r in rungs}
        found = []
        for rung in sorted(alike.values(), key=lambda r: r.target):
            recipe = self.ladder.recipe(LadderCell(rung, 1e-3, 0), data.source[0])
            found.append(recipe.model_copy(update={"data": data.model_copy(update={"rows": rung.rows})}))
        return found

    def _own_text(self) -> Sources | None:
        """Return the standard library's source if no text is named."""
        return None if "source" in self.ladder.data else standard_library(None)

    def _open_text(self, run: RunFolder) -> None:
        """Prepare the text, and check that it is large enough and the text that the ladder began with."""
        begun = run.has_begun()
        corpus = open_corpus(self.settings, self.out / "data", self.watch, begun, self._own_text())
        self.corpus = corpus.folder
        train, held_out = corpus.splits["train"], corpus.splits["held_out"]
        recipes = self._recipes(self.settings)
        for recipe in recipes:
            check_fit(recipe, corpus)
            Batches(train, recipe.data.rows, recipe.data.length, 0)
        run.check("data", corpus.fingerprint(), f"{corpus.folder}: the data")
        name = ", ".join(self.settings.source) if "source" in self.ladder.data else STANDARD_LIBRARY
        self.note(
            data=f"Text: {name}, {train.count:,} tokens to train on and {held_out.count:,} held out, vocabulary "
            f"{corpus.tokenizer.vocabulary:,}; the longest runs read it {recipes[-1].train.tokens / train.count:.1f} "
            "times."
        )

    @property
    def settings(self) -> DataSettings:
        """The settings of the text; without a source it is the standard library's."""
        given = {k: v for k, v in self.ladder.data.items() if k != "rows"}
        return validate(DataSettings, {"source": STANDARD_LIBRARY, **given}, "data")

    def note(self, **facts: Any) -> None:
        """Store facts in ladder.json."""
        write_file(self.out / FACTS, json.dumps({**read_facts(self.out), **facts}, indent=2) + "\n")

    def folder(self, cell: LadderCell) -> Path:
        """Return the run folder of a cell."""
        return self.out / "cells" / cell.name

    def outcome(self, cell: LadderCell) -> RunOutcome | None:
        """Return the outcome of a run, or None while it has not finished; a log is read again only if it has grown."""
        folder = self.folder(cell)
        log = RunFolder(folder).metrics_file
        size = log.stat().st_size if log.is_file() else 0
        known = self.read.get(cell.name)
        if known is None or known[0] != size:
            known = self.read[cell.name] = (size, outcome(folder, cell.rung.config.vocabulary))
        return known[1]

    def tuning(self, arch: str) -> list[LadderCell]:
        """Return the runs that find an architecture's rate."""
        rungs = [self.ladder.rungs[arch, s] for s in self.ladder.tuned()]
        return [LadderCell(r, rate, 0) for r in rungs for rate in self.ladder.rate.tried]

    def best_rate(self, arch: str) -> dict[str, Any] | None:
        """Return `rates.best_rate`, or None while some of the tried runs are not done."""
        found = {(c.rung.size, c.rate): self.outcome(c) for c in self.tuning(arch)}
        done = {k: o for k, o in found.items() if o is not None}
        return best_rate(self.ladder, arch, done) if len(done) == len(found) else None

    def cells(self) -> list[LadderCell]:
        """Return the runs that the study consists of, as far as rates are known."""
        out = []
        for arch in self.ladder.archs:
            if (found := self.best_rate(arch)) is None:
                continue
            for size in self.ladder.sizes:
                rate = rate_at(self.ladder, arch, size, found["best"])
                rung = self.ladder.rungs[arch, size]
                out += [LadderCell(rung, rate, seed) for seed in range(self.ladder.settings.seeds)]
        return sorted(out, key=lambda c: -c.rung.target)  # the longest first, so that none is left alone at the end

    def pending(self) -> list[LadderCell]:
        """Return the runs that can be started and have not finished."""
        return [c for c in self.all() if self.outcome(c) is None]

    def job(self, cell: LadderCell) -> Job:
        """Return the run as a process; its recipe is written beside it."""
        recipe = self.out / "recipes" / f"{cell.name}.toml"
        text = tomli_w.dumps(self.ladder.recipe(cell, str(self.corpus)).to_dict())
        if not recipe.is_file() or recipe.read_text(encoding="utf-8", errors="replace") != text:
            recipe.parent.mkdir(exist_ok=True)
            write_file(recipe, text)
        arguments = (str(recipe), str(self.folder(cell)), self.device)
        return Job(cell.name, self.out / "logs" / cell.name, (sys.executable, "-m", CHILD, *arguments))

    def run(self, command: str) -> Path:
        """Run what has not finished, and return the path of results.csv; the same folder is resumed.

        Raises:
            Failure: a run failed for another reason than divergence; the others' results are kept.
            RunError: another process runs it.
        """
        with hold_folder(self.out):
            return self._run(command)

    def _run(self, command: str) -> Path:
        self.open()
        self.remember(command)
        found = costs(self.ladder)
        self.note(costs=[c.__dict__ for c in found])
        pace = LadderProgress(self, found)

        def check(job: Job, status: int) -> None:
            cell = next((c for c in self.all() if c.name == job.name), None)
            if status and (cell is None or self.outcome(cell) is None):
                log = job.folder / "log.txt"
                raise Failure(
                    f"run {job.name}: {last_line(job.folder, status)}; see {log}; the same command runs the rest"
                )

        run_all(lambda: [self.job(c) for c in self.pending()], self.processes, check, pace.tell)
        return self.finish()

    def remember(self, command: str) -> None:
        """Store the command among those that made this folder."""
        self.note(commands=list(dict.fromkeys([*read_facts(self.out).get("commands", []), command])))

    def all(self) -> list[LadderCell]:
        """Return every run that is known: those that try rates and those of the study."""
        return list(dict.fromkeys([*(c for a in self.ladder.archs for c in self.tuning(a)), *self.cells()]))

    def finish(self) -> Path:
        """Gather the results that have finished."""
        rates = {a: r for a in self.ladder.archs if (r := self.best_rate(a)) is not None}
        self.note(rates=rates)
        return write_results(self.ladder, self.out, self.cells())

    def emit(self, how: Literal["slurm", "local"], command: str) -> tuple[Path, int]:
        """Return (a script, how many runs): all runs that can start now, one command a line, for a job array or xargs.

        Rates are tried first; when those runs are done, the same command writes the rest.
        """
        with hold_folder(self.out):
            return self._emit(how, command)

    def _line(self, cell: LadderCell) -> str:
        """Return the command that runs one cell."""
        recipe, folder, device = self.job(cell).command[3:]
        return shlex.join(["interlace", "train", recipe, "--out", folder, "--device", device])

    def _emit(self, how: Literal["slurm", "local"], command: str) -> tuple[Path, int]:
        self.open()
        self.remember(command)
        self.finish()
        cells = self.pending()
        here = shlex.quote(str(Path.cwd()))
        lines = [self._line(c) for c in cells]
        file = self.out / "jobs.txt"
        write_file(file, "".join(line + "\n" for line in lines))
        script = self.out / ("jobs.sbatch" if how == "slurm" else "jobs.sh")
        logs = self.out / "logs"
        logs.mkdir(exist_ok=True)
        words = {
            "here": here,
            "file": shlex.quote(str(file)),
            "logs": logs,
            "jobs": self.processes,
            "count": len(lines),
        }
        write_file(script, (SLURM if how == "slurm" else LOCAL).format(**words))
        return script, len(lines)


class LadderProgress:
    """The progress of a ladder and its remaining time: estimates, corrected by the time that runs have taken here."""

    def __init__(self, run: LadderRun, found: Sequence[Cost]):
        """found: costs of every rung, on one core with nothing beside it."""
        self.run = run
        self.work = totals(run.ladder, found, 1)["seconds"]
        self.seconds = {(c.arch, c.size): c.seconds for c in found}
        self.steps = {(c.arch, c.size): c.steps for c in found}
        self.total = runs(run.ladder)

    def tell(self, running: Sequence[str]) -> None:
        """Tell how far the work is."""
        run = self.run
        cells = run.all()
        done = {c: o for c in cells if (o := run.outcome(c)) is not None}
        took = sum(o.seconds for o in done.values())
        said = sum(self._said(c) for c in done)
        slower = took / said if said else 1.0
        part = sum(
            self._said(c) * last_step(run.folder(c)) / self.steps[c.rung.arch, c.rung.size]
            for c in cells
            if c.name in running
        )
        left = max(0.0, self.work - said - part)
        share = 1 - left / self.work if self.work else 1.0
        label, seconds = f"{len(done)} of {self.total} runs", slower * left / run.processes
        run.watch(Progress(label, share, 1.0, seconds, ", ".join(running)))

    def _said(self, cell: LadderCell) -> float:
        return self.seconds[cell.rung.arch, cell.rung.size]
