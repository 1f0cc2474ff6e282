"""The two models, the budget, and the race itself: same tokens, same batches, same optimizer, same search."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from interlace.base.files import write_file
from interlace.data.batches import Batches
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM
from interlace.model.sizes import match_parameters, sizes
from interlace.train.precision import choose_precision
from interlace.train.recipe import TrainSettings
from interlace.train.run import RunFolder
from interlace.train.trainer import Trainer

NAMES = ("transformer", "hybrid")
RATES = (3e-3, 6e-3, 1.2e-2)
ROWS, LENGTH = 4, 256
WIDTH, DEPTH, HEADS = 128, 4, 2
INIT_STD = 0.06  # about 2/3 width^-1/2; with 0.02 the sweep's short runs favoured rates too low for the race
SWEEP_SHARE = 0.25  # of the time for training, all six runs together
RESERVE_SECONDS = 10.0  # for final scores, samples and the report
EVALUATIONS = 16
SEED = 0


def configs(vocabulary: int, eos: int | None) -> dict[str, ModelConfig]:
    """A 3:1 hybrid in Olmo Hybrid's proportions, and a transformer whose MLP is solved to as many parameters."""
    attention = {"heads": HEADS, "norm": "output"}
    common: dict[str, Any] = {"width": WIDTH, "depth": DEPTH, "vocabulary": vocabulary, "max_positions": 8192}
    common["init_std"] = INIT_STD
    common["tokens"] = {"eos": [] if eos is None else [eos]}
    head = WIDTH // HEADS
    hybrid = ModelConfig.from_dict(
        {
            **common,
            "pattern": ["gated_delta"] * 3 + ["attention"],
            "gated_delta": {"heads": HEADS, "key_dim": 3 * head // 4, "value_dim": 3 * head // 2, "norm": "input"},
            "attention": {**attention, "position": "none"},
            "mlp": {"width": 8 * round(WIDTH / 3)},
        }
    )
    transformer = ModelConfig.from_dict(
        {**common, "pattern": ["attention"], "attention": attention, "mlp": {"width": 8}}
    )
    matched = match_parameters(transformer, sizes(hybrid, ()).non_embedding)
    return {"transformer": matched, "hybrid": hybrid}


@dataclass(frozen=True)
class Plan:
    """How many steps the budget buys; written down once, so that an interrupted race goes on unchanged."""

    steps: int
    sweep_steps: int
    precision: str
    batch_tokens: int
    seconds_per_step: dict[str, float]


@dataclass
class Watcher:
    """Told how the race goes.

    Attributes:
        stage: (what is going on, done, total).
        step: (the model's name, what was logged for the step, steps in all).
    """

    stage: Callable[[str, float, float], None] = lambda *_: None
    step: Callable[[str, dict[str, Any], int], None] = lambda *_: None


@dataclass
class Contest:
    """Two models on one corpus, in one folder.

    Attributes:
        out: the folder; each model has a run folder of its own in it.
        corpus: the text.
        budget_seconds: left for training and what follows, when no plan has been made yet.
        watcher: told how it goes.
    """

    out: Path
    corpus: Corpus
    budget_seconds: float
    watcher: Watcher = field(default_factory=Watcher)

    def __post_init__(self) -> None:
        """Lay out models and batches."""
        tokenizer = self.corpus.tokenizer
        self.configs = configs(tokenizer.vocabulary, tokenizer.eos)
        rows = max(1, min(ROWS, (self.corpus.splits["train"].count - 1) // LENGTH))
        self.batches = Batches(self.corpus.splits["train"], rows, LENGTH, SEED)
        self.quick = HeldOut(self.corpus, LENGTH, 16_384)
        self.full = HeldOut(self.corpus, LENGTH, 65_536)
        self.runs = {name: RunFolder(self.out / name) for name in NAMES}

    def model(self, name: str) -> HybridLM:
        """Fresh weights, the same for every run of this model."""
        torch.manual_seed(SEED)
        model = HybridLM(self.configs[name])
        model.tokenizer = self.corpus.tokenizer
        return model

    def trainer(self, name: str, rate: float, steps: int, precision: str) -> Trainer:
        """A trainer from fresh weights."""
        settings = TrainSettings(tokens=steps * self.batches.tokens, learning_rate=rate, seed=SEED)
        return Trainer(self.model(name), settings, steps, precision)

    def plan(self) -> Plan:
        """The plan that was made, or one from how fast this machine is."""
        file = self.out / "plan.json"
        if file.is_file():
            return Plan(**json.loads(file.read_text(encoding="utf-8")))
        start = time.perf_counter()
        precision = choose_precision("auto", torch.device("cpu"))
        seconds = {}
        for index, name in enumerate(NAMES):
            self.watcher.stage("measuring speed", index, len(NAMES))
            trainer = self.trainer(name, RATES[0], 100, precision)
            took = [trainer.step(self.batches.batch(i)).seconds for i in range(6)]
            seconds[name] = sum(sorted(took)[1:4]) / 3
        scoring = self.full_seconds()
        left = self.budget_seconds - (time.perf_counter() - start) - RESERVE_SECONDS
        left -= scoring * 2 * (len(RATES) / 4 + EVALUATIONS / 4 + 1)
        pair = sum(seconds.values())
        sweep = max(10, int(SWEEP_SHARE * left / (len(RATES) * pair)))
        steps = max(20, int((1 - SWEEP_SHARE) * left / pair))
        plan = Plan(steps, sweep, precision, self.batches.tokens, seconds)
        write_file(file, json.dumps(asdict(plan), indent=2) + "\n")
        return plan

    def full_seconds(self) -> float:
        """How long it takes to score all of the held-out text that is scored at the end."""
        start = time.perf_counter()
        self.quick.score(self.model("hybrid"))
        return (time.perf_counter() - start) * len(self.full.batches) / len(self.quick.batches)

    def sweep(self, plan: Plan) -> list[dict[str, Any]]:
        """Held-out bits per byte of each learning rate for each model, on the same short prefix of the data."""
        file = self.out / "sweep.jsonl"
        done = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
        for rate in RATES:
            for name in NAMES:
                if any(d["model"] == name and d["learning_rate"] == rate for d in done):
                    continue
                self.watcher.stage(f"learning rates: {name} at {rate:g}", len(done), len(RATES) * len(NAMES))
                trainer = self.trainer(name, rate, plan.sweep_steps, plan.precision)
                for step in range(plan.sweep_steps):
                    trainer.step(self.batches.batch(step))
                score = self.quick.score(trainer.model)["held_out_bits_per_byte"]
                done.append({"model": name, "learning_rate": rate, "held_out_bits_per_byte": score})
                write_file(file, "".join(json.dumps(d) + "\n" for d in done))
        return done

    def race(self, plan: Plan, rates: dict[str, float]) -> None:
        """Train both models step by step on the same batches, with scores and checkpoints on the way."""
        trainers = {}
        for name in NAMES:
            trainers[name] = self.trainer(name, rates[name], plan.steps, plan.precision)
            config = {"model": self.configs[name].to_dict(), "train": {"learning_rate": rates[name], **asdict(plan)}}
            run = self.runs[name] = RunFolder.open(self.out / name, config)
            newest = run.newest_good()
            if newest is not None:
                trainers[name].resume(newest)
            run.forget_after(trainers[name].done)
        for step in range(min(t.done for t in trainers.values()), plan.steps):
            batch = self.batches.batch(step)
            for name, trainer in trainers.items():
                if trainer.done == step:
                    self._one_step(name, trainer, batch, plan.steps)

    def _one_step(self, name: str, trainer: Trainer, batch: Any, steps: int) -> None:
        taken = trainer.step(batch)
        row: dict[str, Any] = {"step": trainer.done, "tokens": trainer.done * self.batches.tokens, "loss": taken.loss}
        row |= {"learning_rate": taken.learning_rate, "tokens_per_second": self.batches.tokens / taken.seconds}
        every = max(1, steps // EVALUATIONS)
        last = trainer.done == steps
        if last or trainer.done % (4 * every) == 0:
            self.runs[name].write_checkpoint(trainer.done, trainer.write)
        if last or trainer.done % every == 0:
            row |= (self.full if last else self.quick).score(trainer.model)
            if last:  # the same scale as the points before it, for the curve and the token saving
                row["held_out_curve"] = self.quick.score(trainer.model)["held_out_bits_per_byte"]
            else:
                row["held_out_curve"] = row["held_out_bits_per_byte"]
        self.runs[name].log(**row)
        self.watcher.step(name, row, steps)


def tokens_to_reach(curve: list[tuple[float, float]], level: float) -> float | None:
    """Tokens at which a falling (tokens, score) curve first comes down to `level`, or None; straight in log tokens."""
    for (t0, s0), (t1, s1) in pairwise(curve):
        if s0 <= level:
            return t0
        if s1 <= level:
            share = (s0 - level) / (s0 - s1)
            return math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0)))
    return curve[0][0] if curve and curve[0][1] <= level else None
