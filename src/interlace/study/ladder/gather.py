"""Gather the results of a ladder's runs from their folders, as points for a fit."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from interlace.base.errors import ConfigError, DataError, RunError
from interlace.base.files import read_json, write_file
from interlace.base.schema import Closed, validate
from interlace.model.sizes import sizes
from interlace.runs.page import table
from interlace.runs.training import TrainingRun
from interlace.study.ladder.plan import Ladder, LadderCell, build
from interlace.study.scaling.source import RESULTS

COLUMNS = ("arch", "size", "N", "D", "loss", "bits_per_byte", "flops", "run", "seed", "rate", "diverged")
FACTS = "ladder.json"
POINT = ("tokens", "held_out_loss", "held_out_bits_per_byte")
DIVERGED = (
    "A run has diverged if its loss or gradient stopped being finite, or if its held-out loss at a horizon was no "
    "better than guessing (the logarithm of the vocabulary). Its points are kept and marked, and no fit uses any of "
    "them."
)


@dataclass(frozen=True)
class RunOutcome:
    """One finished run.

    Attributes:
        points: {"tokens", "held_out_loss", "held_out_bits_per_byte"} of each horizon that was reached.
        diverged: why, or None.
        seconds: spent in its steps.
    """

    points: list[dict[str, float]]
    diverged: str | None
    seconds: float


class _Rates(Closed):
    """The result of trying learning rates."""

    model_config = ConfigDict(extra="allow")

    tried: dict[str, Any]
    best: float
    note: str


class _Facts(Closed):
    """What ladder.json may hold."""

    model_config = ConfigDict(extra="allow")

    commands: list[str] = Field(default_factory=list)
    data: str = ""
    rates: dict[str, _Rates] = Field(default_factory=dict)


def outcome(folder: Path, vocabulary: int) -> RunOutcome | None:
    """Return the outcome of a run from its folder, or None while the run is not finished.

    Raises:
        DataError: its log is damaged.
    """
    points, diverged, seconds, done = [], None, 0.0, False
    for row in TrainingRun(folder).metrics():
        seconds += row.get("seconds", 0.0)
        if "diverged" in row:
            diverged, done = row["diverged"], True
        if "horizon" in row:
            if not row.keys() >= set(POINT):
                where = f"{TrainingRun(folder).metrics_file}: step {row['step']}"
                raise DataError(f"{where} has no held-out loss; remove {folder}, and the run is done again")
            points.append({k: row[k] for k in POINT})
            done = done or row["horizon"] == 1
            if not row["held_out_loss"] < math.log(vocabulary):
                diverged = diverged or f"held-out loss {row['held_out_loss']:.3f} is no better than guessing"
    return RunOutcome(points, diverged, seconds) if done else None


def last_step(folder: Path) -> int:
    """Return the last step of a run; only the end of its log is read."""
    file = TrainingRun(folder).metrics_file
    if not file.is_file():
        return 0
    with open(file, "rb") as raw:
        raw.seek(max(0, file.stat().st_size - 4096))
        lines = raw.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, LookupError, RecursionError):  # cut off by the seek, being written, or damaged
            continue
    return 0


def write_results(ladder: Ladder, out: Path, cells: list[LadderCell]) -> Path:
    """Write results.csv from the cells that have finished."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in cells:
        found = outcome(out / "cells" / cell.name, cell.rung.config.vocabulary)
        if found is None:
            continue
        rung = cell.rung
        per_token = sizes(rung.config, (ladder.length,)).training_flops_per_token[ladder.length]
        mark = int(found.diverged is not None)
        nothing: dict[str, float] = {"tokens": ladder.steps(rung)[0] * rung.rows * ladder.length}
        for p in found.points or [nothing]:
            loss = [f"{p[k]:.6f}" if k in p else "" for k in ("held_out_loss", "held_out_bits_per_byte")]
            flops = f"{per_token * p['tokens']:.6g}"
            head = [rung.arch, rung.size, rung.parameters, int(p["tokens"]), *loss]
            writer.writerow([*head, flops, cell.name, cell.seed, f"{cell.rate:.6g}", mark])
    write_file(out / RESULTS, text.getvalue())
    return out / RESULTS


def read_facts(out: Path) -> dict[str, Any]:
    """Return the facts of a ladder beside its runs: commands, text, costs, rates; empty before it has begun.

    Raises:
        DataError: the file is damaged.
    """
    file = out / FACTS
    if not file.is_file():
        return {}
    try:
        return validate(_Facts, read_json(file, "what is known of a ladder"), "").model_dump(exclude_unset=True)
    except (DataError, ConfigError, TypeError) as error:
        said = str(error).removeprefix(f"{file}: ")
        raise DataError(f"{file}: is damaged: {said}; remove it: `interlace study ladder` writes it again") from None


def about(out: Path) -> tuple[list[str], list[str]]:
    """Return (the commands, HTML for the start of the report) of a ladder's folder."""
    from interlace.study.ladder.estimate import rung_columns, rung_rows

    try:
        ladder = build(TrainingRun(out).config())
    except ConfigError as error:
        raise RunError(f"{TrainingRun(out).file}: is not a ladder's: {error}; put it back") from None
    facts = read_facts(out)
    sections = ["<h2>The ladder</h2>", table(rung_columns(), rung_rows(ladder), 2)]
    multiples = ", ".join(f"{m:g}" for m in ladder.settings.multiples)
    train = ", ".join(f"{k} {v}" for k, v in ladder.train.items())
    text = (
        f"{len(ladder.sizes)} sizes, {multiples} tokens per parameter from one run (warm-up, a plateau, and a decay to "
        f"0 at each), {len(ladder.archs)} architectures, {ladder.settings.seeds} seeds. Architectures of a size are "
        f"matched in {ladder.settings.match} by {ladder.settings.free}. {rate_rule(ladder)} {DIVERGED} Training: "
        f"{train}."
    )
    sections.append(f"<p>{html.escape(text)}</p>")
    if facts.get("data"):
        sections.append(f"<p>{html.escape(facts['data'])}</p>")
    if facts.get("rates"):
        rows = [
            [arch, ", ".join(f"{r}: {loss}" for r, loss in x["tried"].items()), x["note"], f"{x['best']:.3g}"]
            for arch, x in facts["rates"].items()
        ]
        sections += ["<h3>Learning rates</h3>", table(["architecture", "rate: loss", "", "best"], rows, 3)]
    return list(facts.get("commands", [])), sections


def rate_rule(ladder: Ladder) -> str:
    """Return a sentence on how the learning rate of each size is chosen."""
    tried = ", ".join(f"{r:g}" for r in ladder.rate.tried)
    sizes_ = ", ".join(ladder.tuned())
    return (
        f"Learning rates {tried} were tried for each architecture on {sizes_} with the first seed, whole runs; other "
        f"sizes have the best one times (N / N of {sizes_}) ^ -{ladder.rate.exponent:.3g}."
    )


__all__ = [
    "COLUMNS",
    "DIVERGED",
    "FACTS",
    "RunOutcome",
    "about",
    "last_step",
    "outcome",
    "rate_rule",
    "read_facts",
    "write_results",
]
