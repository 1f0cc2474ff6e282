"""The two models, the budget, and the race itself: same tokens, same batches, same optimizer, same search."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from interlace.model.precision import choose_precision
from interlace.model.sizes import match_parameters, sizes
from interlace.runs.progress import Progress, Watch, silent
from interlace.runs.training import TrainingRun
from interlace.study.quickstart.plan import (
    EVALUATIONS,
    FINAL_SCORES,
    NAMES,
    PLAN,
    RATES,
    REST_SECONDS,
    SCORED_TOKENS,
    Clock,
    Plan,
    read_plan,
    read_sweep,
)
from interlace.train.recipe import TrainSettings
from interlace.train.steps import take_steps
from interlace.train.trainer import Trainer

ROWS, LENGTH = 4, 256
WIDTH, DEPTH, HEADS = 128, 4, 2
INIT_STD = 0.06  # about 2/3 width^-1/2; with 0.02 the sweep's short runs favoured rates too low for the race
SWEEP_SHARE = 0.25  # of the time for training, all six runs together
SWEEP_STEPS = 10  # of a run, at least; a budget that does not hold them is raced at the middle rate
MEASURED, MEASURED_SHARE = 8, 0.05  # steps that speed is measured by, and the most of the budget that they may take
WARM = 2  # steps before that, on a GPU
SCORE_SHARE, FINAL_SHARE = 0.1, 0.15  # of the time, for the points of both curves and for both final scores
LEAST_TOKENS = 250_000  # of training for each model, from which on a winner is named
SEED = 0


def configs(vocabulary: int, eos: int | None) -> dict[str, ModelConfig]:
    """Return a 3:1 hybrid in Olmo Hybrid's proportions, and a transformer whose MLP is solved to as many parameters."""
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


@dataclass
class Contest:
    """Two models on one corpus, in one folder.

    Attributes:
        out: the folder; each model has a run folder of its own in it.
        corpus: the text.
        clock: what is left of the budget.
        watch: called with the progress; "race" after each step, with the row that was logged and the model's name.
        device: where both models are trained and scored.
    """

    out: Path
    corpus: Corpus
    clock: Clock
    watch: Watch = silent
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Lay out models and batches."""
        tokenizer = self.corpus.tokenizer
        self.configs = configs(tokenizer.vocabulary, tokenizer.eos)
        rows = max(1, min(ROWS, (self.corpus.splits["train"].count - 1) // LENGTH))
        self.batches = Batches(self.corpus.splits["train"], rows, LENGTH, SEED)
        self.runs = {name: TrainingRun(self.out / name) for name in NAMES}

    def model(self, name: str) -> HybridLM:
        """Return a model with fresh weights, the same for every run of this model."""
        torch.manual_seed(SEED)
        model = HybridLM(self.configs[name], device=self.device)
        model.tokenizer = self.corpus.tokenizer
        return model

    def trainer(self, name: str, rate: float, steps: int, precision: str) -> Trainer:
        """Return a trainer that starts from fresh weights."""
        settings = TrainSettings(tokens=steps * self.batches.tokens, learning_rate=rate, seed=SEED)
        return Trainer.of(self.model(name), settings, steps, precision)

    @property
    def file(self) -> Path:
        """The file of the plan."""
        return self.out / PLAN

    def keep(self, plan: Plan) -> None:
        """Write the plan to its file."""
        plan.spent_seconds = self.clock.spent
        write_file(self.file, json.dumps(asdict(plan), indent=2) + "\n")

    def plan(self) -> Plan:
        """Return the plan that was made, or make one from how fast this machine is.

        Raises:
            RunError: the plan that was made is damaged.
        """
        plan = read_plan(self.file, self.batches.tokens)
        if plan is None:
            plan = self._measured()
            self.keep(plan)
        self.quick = HeldOut(self.corpus, LENGTH, plan.quick_tokens)
        self.full = HeldOut(self.corpus, LENGTH, plan.full_tokens)
        return plan

    def _measured(self) -> Plan:
        """Make a plan from the time that steps and scores take here, for both models by turns."""
        precision = choose_precision("auto", torch.device(self.device))
        trainers = {name: self.trainer(name, RATES[0], 100, precision) for name in NAMES}
        few = HeldOut(self.corpus, LENGTH, SCORED_TOKENS[0])
        if torch.device(self.device).type != "cpu":  # kernels are compiled and checked in their first calls
            for trainer in trainers.values():
                for step in range(WARM):
                    trainer.step(self.batches.batch(step))
                trainer.settle()
                few.score(trainer.model)
        took: dict[str, list[float]] = {name: [] for name in NAMES}
        until = self.clock.spent + MEASURED_SHARE * self.clock.budget
        for step in range(MEASURED):
            self.watch(Progress("measuring speed", step, MEASURED))
            for name, trainer in trainers.items():
                took[name].append(trainer.step(self.batches.batch(step)).seconds)
            if self.clock.spent > until:
                break
        seconds = {name: _careful(times) for name, times in took.items()}
        scores = {}
        for name, trainer in trainers.items():
            began = time.perf_counter()
            few.score(trainer.model)
            scores[name] = (time.perf_counter() - began) / SCORED_TOKENS[0]
        return self._divided(precision, seconds, scores)

    def _divided(self, precision: str, seconds: dict[str, float], scores: dict[str, float]) -> Plan:
        """Divide the time that is left among the search for rates, the race and its scores."""
        plan = Plan(1, 0, precision, self.batches.tokens, seconds, scores, fixed=False)
        score, pair, left = sum(scores.values()), sum(seconds.values()), max(0.0, self.clock.left - REST_SECONDS)
        while plan.quick_tokens > SCORED_TOKENS[0] and len(RATES) * plan.point_seconds > MEASURED_SHARE * left:
            plan.quick_tokens //= 2
        plan.full_tokens = FINAL_SCORES * plan.quick_tokens
        while plan.full_tokens > SCORED_TOKENS[0] and plan.full_tokens * score > FINAL_SHARE * left:
            plan.full_tokens //= 2
        left = max(0.0, self.clock.left - plan.tail_seconds)
        searched = SWEEP_SHARE * left - len(RATES) * plan.point_seconds
        plan.sweep_steps = int(searched / (len(RATES) * pair))
        if plan.sweep_steps < SWEEP_STEPS:
            plan.sweep_steps = 0
        else:
            left -= SWEEP_SHARE * left
        plan.evaluations = max(1, min(EVALUATIONS, int(SCORE_SHARE * left / max(plan.point_seconds, 1e-9))))
        plan.steps = max(1, int((left - plan.evaluations * plan.point_seconds) / pair))
        plan.evaluations = max(1, min(plan.evaluations, plan.steps // 8))
        return plan

    def sweep(self, plan: Plan) -> list[dict[str, Any]]:
        """Return held-out bits per byte of each learning rate for each model, on the same short prefix of the data.

        Every model has had the same rates; rates for which there is no time are left out.
        """
        file = self.out / "sweep.jsonl"
        done = read_sweep(file)
        begun, most = self.clock.spent, self.clock.spent + 1.25 * SWEEP_SHARE * self.clock.left
        for rate in RATES if plan.sweep_steps else ():
            if not plan.fixed and done and self.clock.spent > most - (most - begun) / len(RATES):  # one more
                break
            for name in NAMES:
                if any(d["model"] == name and d["learning_rate"] == rate for d in done):
                    continue
                tried, of = len(done), len(RATES) * len(NAMES)
                self.watch(Progress(f"learning rates: {name} at {rate:g}", tried, of))
                trainer = self.trainer(name, rate, plan.sweep_steps, plan.precision)
                take_steps([trainer], self.batches.batch)
                score = self.quick.score(trainer.model)["held_out_bits_per_byte"]
                done.append({"model": name, "learning_rate": rate, "held_out_bits_per_byte": score})
                write_file(file, "".join(json.dumps(d) + "\n" for d in done))
                self.keep(plan)
        return done


def _careful(times: Sequence[float]) -> float:
    """Return the mean of the slower half of times, without the first steps if there are enough."""
    settled = sorted(times[2:] if len(times) > 4 else times[1:] or times)
    slower = settled[len(settled) // 2 :]
    return sum(slower) / len(slower)


def tokens_to_reach(curve: list[tuple[float, float]], level: float) -> float | None:
    """Return the tokens at which a falling (tokens, score) curve first reaches `level`, or None.

    Between points the curve is straight in log tokens.
    """
    for (t0, s0), (t1, s1) in pairwise(curve):
        if s0 <= level:
            return t0
        if s1 <= level:
            share = (s0 - level) / (s0 - s1)
            return math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0)))
    return curve[0][0] if curve and curve[0][1] <= level else None
