"""One cell of the grid: a model trained on a task from one seed at one learning rate, in a process of its own.

    python -m interlace.study.tasks.cell FOLDER [DEVICE]

FOLDER holds cell.json; metrics.jsonl grows while the cell trains, result.json is there once it is done.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interlace.base.errors import Diverged
from interlace.base.files import write_file
from interlace.data.batches import Batch
from interlace.model.model import HybridLM
from interlace.ops.core import kernels
from interlace.runs.processes import die_with_parent
from interlace.study.tasks.arms import Shape, config
from interlace.study.tasks.registry import task as find
from interlace.study.tasks.task import Sample, Task, packed
from interlace.train.recipe import TrainSettings
from interlace.train.steps import take_steps
from interlace.train.trainer import StepResult, Trainer

SOLVED = 0.95  # the score at the hardest trained difficulty from which a task counts as solved
WARMUP, DECAY = 0.05, 0.2
TEST_TOKENS = 16_384  # at a time


@dataclass(frozen=True)
class Budget:
    """How a cell is trained.

    Attributes:
        steps, rows: steps, and samples drawn anew for every step.
        rates: learning rates tried with the first seed; the best one is every other seed's.
        weight_decay: on matrices.
        evaluations: how often the tests are taken during training.
        tests: samples for each difficulty.
        init_std: deviation of the initial matrices.
    """

    steps: int
    rows: int = 64
    rates: tuple[float, ...] = (1e-3, 4e-3)
    weight_decay: float = 0.01
    evaluations: int = 20
    tests: int = 256
    init_std: float = 0.05


@dataclass(frozen=True)
class TaskCell:
    """A cell: what one process trains."""

    task: str
    model: str
    seed: int
    rate: float
    shape: Shape
    budget: Budget

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.task}-{Path(self.model).stem}-rate{self.rate:g}-seed{self.seed}"

    @staticmethod
    def read(folder: Path) -> TaskCell:
        """Return the cell that a folder was made for."""
        raw = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        raw["shape"], raw["budget"] = Shape(**raw["shape"]), Budget(**raw["budget"])
        return TaskCell(**raw)

    def write(self, folder: Path) -> None:
        """Make the folder; files that it holds already are not written again."""
        folder.mkdir(parents=True, exist_ok=True)
        file, text = folder / "cell.json", json.dumps(asdict(self), indent=2) + "\n"
        if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text:
            write_file(file, text)


class Tests:
    """The problems of every tested difficulty, and what a model scores on them."""

    def __init__(self, task: Task, count: int):
        """count: samples for each difficulty."""
        self.task = task
        self.sets = {d: task.test_set(d, count) for d in task.tested}

    def scores(self, model: HybridLM) -> dict[int, float]:
        """Return the scores by difficulty."""
        return {d: self._score(model, samples) for d, samples in self.sets.items()}

    @torch.inference_mode()
    def _score(self, model: HybridLM, samples: list[Sample]) -> float:
        model.eval()
        right: list[bool] = []
        many = max(1, TEST_TOKENS // max(len(s.tokens) for s in samples))
        for start in range(0, len(samples), many):
            some = samples[start : start + many]
            batch = packed(some)
            hidden, _, _ = model.hidden(batch.tokens.to(model.device), batch.segments)
            begins = batch.segments.offsets.tolist()
            places = torch.tensor([b + a for b, s in zip(begins, some, strict=False) for a in s.answers])
            said = model.logits(hidden[places.to(model.device)]).argmax(-1).cpu()
            hits = (said == batch.targets[places]).split([len(s.answers) for s in some])
            if self.task.scored_by == "sequence":
                right += [bool(h.all()) for h in hits]
            else:
                right += torch.cat(hits).tolist()
        return sum(right) / len(right)


def hardest_trained(task: Task) -> int:
    """Return the tested difficulty that stands for training: the hardest that is no harder than what was trained."""
    return max(d for d in task.tested if d <= task.trained[-1])


def train(cell: TaskCell, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train a cell from its start; write and return its result. A divergence ends it and is stored in the result."""
    task, budget = find(cell.task), cell.budget
    table = config(cell.model, cell.shape, len(task.words)).replace(init_std=budget.init_std)
    torch.manual_seed(cell.seed)
    model = HybridLM(table, device=device)
    settings = TrainSettings(
        tokens=1, learning_rate=cell.rate, weight_decay=budget.weight_decay, warmup=WARMUP, decay=DECAY
    )
    trainer = Trainer.of(model, settings, budget.steps)
    tests, key = Tests(task, budget.tests), hardest_trained(task)
    every = max(1, budget.steps // budget.evaluations)
    diverged, drawn_tokens = None, list[int]()
    solved: dict[str, int] | None = None
    scores: dict[int, float] = {}
    start = time.perf_counter()
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as metrics:

        def batch(step: int) -> Batch:
            drawn = draw(task, cell, step + 1)
            drawn_tokens.append(drawn.segments.total)  # in order of steps, on a GPU one step ahead
            return drawn

        def after(_: Trainer, step: StepResult) -> None:
            nonlocal scores, solved
            number = trainer.done
            if number % every and number != budget.steps:
                return
            tokens = sum(drawn_tokens[:number])
            loss = step.loss  # before the scores: a step that diverged has none
            scores = tests.scores(model)
            row = {"step": number, "tokens": tokens, "loss": loss, "scores": scores}
            metrics.write(json.dumps({**row, "seconds": time.perf_counter() - start}) + "\n")
            metrics.flush()
            if solved is None and scores[key] >= SOLVED:
                solved = {"step": number, "tokens": tokens}

        try:
            take_steps([trainer], batch, after)
        except Diverged as failure:
            diverged = str(failure)
    result = {
        **asdict(cell),
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": scores or dict.fromkeys(task.tested, 0.0),
        "solved": solved if solved and diverged is None and scores[key] >= SOLVED else None,
        "diverged": diverged,
        "seconds": time.perf_counter() - start,
    }
    write_file(folder / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def draw(task: Task, cell: TaskCell, number: int) -> Batch:
    """Return the batch of a step: a function of the seed and the step, the same for every model."""
    rng = np.random.default_rng([1, cell.seed, number])
    return task.batch(rng, cell.budget.rows, (number - 1) / cell.budget.steps)


def main() -> None:
    """Train the cell of the folder that is named on the command line."""
    die_with_parent()
    kernels.keep_memory()
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    train(TaskCell.read(folder), folder, *sys.argv[2:3])


if __name__ == "__main__":
    main()
