"""Estimate a ladder before anything runs: parameters, FLOPs, tokens, memory, time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from interlace.base.segments import Segments
from interlace.data.batches import Batch
from interlace.model.model import HybridLM
from interlace.model.precision import matmul_flops_per_second
from interlace.model.sizes import sizes
from interlace.study.ladder.match import dimension
from interlace.study.ladder.plan import Ladder, Rung
from interlace.train.estimate import UTILISATION, activation_bytes
from interlace.train.recipe import TrainSettings
from interlace.train.trainer import Trainer

TIMED_STEPS = 3
WORTH_TIMING = 4.0  # seconds a step may be expected to take, to be timed and not only estimated


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a rung.

    Attributes:
        flops: of the whole run.
        memory_bytes: weights, gradients, AdamW, and what autograd keeps of one batch.
        seconds: of the whole run on one core.
        timed: whether a step was run here to measure the time.
    """

    arch: str
    size: str
    parameters: int
    total: int
    error: float
    free: int | None
    tokens: int
    steps: int
    flops: float
    memory_bytes: int
    seconds: float
    timed: bool


def costs(ladder: Ladder) -> list[Cost]:
    """Return the cost of every rung, by size; a few steps of each rung that is small enough are run, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_cost(ladder, ladder.rungs[a, s]) for s in ladder.sizes for a in ladder.archs]
    finally:
        torch.set_num_threads(threads)


def _cost(ladder: Ladder, rung: Rung) -> Cost:
    size = sizes(rung.config, (ladder.length,), element_bytes=4)
    steps = ladder.steps(rung)[-1]
    batch = rung.rows * ladder.length
    per_step = size.training_flops_per_token[ladder.length] * batch
    precision = ladder.train["precision"]
    seconds = per_step / (matmul_flops_per_second(getattr(torch, precision)) * UTILISATION)
    timed = seconds < WORTH_TIMING
    if timed:
        seconds = _time_step(rung, ladder.length, precision)
    memory = 16 * size.total + activation_bytes(rung.config, rung.rows, ladder.length)
    return Cost(
        rung.arch,
        rung.size,
        rung.parameters,
        size.total,
        rung.error,
        dimension(rung.config, ladder.settings.free),
        steps * batch,
        steps,
        per_step * steps,
        memory,
        seconds * steps,
        timed,
    )


def _time_step(rung: Rung, length: int, precision: str) -> float:
    model = HybridLM(rung.config)
    trainer = Trainer.of(model, TrainSettings(tokens=1, learning_rate=1e-9), TIMED_STEPS + 1, precision)
    tokens = torch.randint(rung.config.vocabulary, (rung.rows * length,))
    batch = Batch(tokens, tokens.roll(-1), Segments.from_lengths([length] * rung.rows))
    took = [trainer.step(batch).seconds for _ in range(TIMED_STEPS + 1)]
    return statistics.median(took[1:])


def rung_columns() -> list[str]:
    """Return the columns of the table of models."""
    return ["size", "architecture", "parameters", "off", "free dimension", "in all", "tokens", "steps", "rows"]


def rung_rows(ladder: Ladder) -> list[list[str]]:
    """Return the rows of the table of models, one for each matched model."""
    rows = []
    for size in ladder.sizes:
        for arch in ladder.archs:
            rung = ladder.rungs[arch, size]
            free = dimension(rung.config, ladder.settings.free)
            steps = ladder.steps(rung)[-1]
            total = sizes(rung.config, ()).total
            rows.append(
                [
                    size,
                    arch,
                    f"{rung.parameters:,}",
                    f"{rung.error:+.2%}",
                    f"{ladder.settings.free} = {free}" if free is not None else "-",
                    f"{total:,}",
                    f"{steps * rung.rows * ladder.length:,}",
                    f"{steps:,}",
                    str(rung.rows),
                ]
            )
    return rows


def to_dict(ladder: Ladder, found: list[Cost], jobs: int) -> dict[str, Any]:
    """Return plain data for `--json`."""
    return {"runs": runs(ladder), "jobs": jobs, **totals(ladder, found, jobs), "rungs": [asdict(c) for c in found]}


def runs(ladder: Ladder) -> int:
    """Return the number of runs: every seed of every rung, and the runs that try learning rates."""
    return len(ladder.rungs) * ladder.settings.seeds + len(ladder.archs) * ladder.rate.sizes * _more(ladder)


def _more(ladder: Ladder) -> int:
    """Return how many runs a tried rung has beyond its seeds.

    If one size is tried, the run at the best rate is also the run of the first seed.
    """
    return len(ladder.rate.tried) - (1 if ladder.rate.sizes == 1 else 0)


def totals(ladder: Ladder, found: Sequence[Cost], jobs: int) -> dict[str, float]:
    """Return {"flops", "seconds" (all runs, `jobs` at once), "tokens"} of the whole ladder."""
    tried = set(ladder.tuned())
    often = {c: ladder.settings.seeds + (_more(ladder) if c.size in tried else 0) for c in found}
    return {
        "flops": sum(c.flops * k for c, k in often.items()),
        "tokens": float(sum(c.tokens * k for c, k in often.items())),
        "seconds": sum(c.seconds * k for c, k in often.items()) / jobs,
    }
