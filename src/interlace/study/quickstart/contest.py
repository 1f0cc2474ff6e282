"""The two models, the budget, and the race itself: same tokens, same batches, same optimizer, same search."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from interlace.base.errors import RunError
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
from interlace.train.recipe import TrainSettings
from interlace.train.steps import take_steps
from interlace.train.trainer import Step, Trainer

NAMES = ("transformer", "hybrid")
RATES = (3e-3, 6e-3, 1.2e-2)
ROWS, LENGTH = 4, 256
WIDTH, DEPTH, HEADS = 128, 4, 2
INIT_STD = 0.06  # about 2/3 width^-1/2; with 0.02 the sweep's short runs favoured rates too low for the race
SWEEP_SHARE = 0.25  # of the time for training, all six runs together
SWEEP_STEPS = 10  # of a run, at least; a budget that does not hold them is raced at the middle rate
MEASURED, MEASURED_SHARE = 8, 0.05  # steps that speed is measured by, and the most of the budget that they may take
SCORED_TOKENS = (2048, 16_384)  # of the held-out text, for a point of the curve: at least, at most
FINAL_SCORES = 4  # times as many for the final score
SCORE_SHARE, FINAL_SHARE = 0.1, 0.15  # of the time, for the points of both curves and for both final scores
REST_SECONDS = 5.0  # for samples, checkpoints and the report
SAFETY = 1.3  # by how much the end of a race may take longer than measured
EVALUATIONS = 16
CHECKPOINTS = 4  # on the way
RECENT = 8  # steps whose time says what the next will take
REPLAN = 16  # steps after which the number of steps is first looked at again
PLAN = "plan.json"
LEAST_TOKENS = 250_000  # of training for each model, from which on a winner is named
SEED = 0


class Clock:
    """Seconds of a comparison's budget; those of earlier starts count, those between two starts do not."""

    def __init__(self, budget_seconds: float, spent_seconds: float = 0.0):
        """spent_seconds: by earlier starts."""
        self.budget = budget_seconds
        self._start = time.perf_counter() - spent_seconds

    @property
    def spent(self) -> float:
        """Seconds of work so far."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds until the budget is used up."""
        return self.budget - self.spent


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


@dataclass
class Plan:
    """What the budget buys; kept in plan.json, so that an interrupted race goes on with it.

    Attributes:
        steps: of the race; changed by what steps turn out to take, unless the plan is `fixed`.
        sweep_steps: of each run that tries a learning rate; 0 where there is no time for them.
        seconds_per_step, seconds_per_score: by model; of a token that is scored.
        evaluations: points of each curve.
        quick_tokens, full_tokens: of the held-out text, for a point and for the final score.
        spent_seconds: of the budget, when the plan was last written.
    """

    steps: int
    sweep_steps: int
    precision: str
    batch_tokens: int
    seconds_per_step: dict[str, float]
    seconds_per_score: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))
    evaluations: int = EVALUATIONS
    quick_tokens: int = SCORED_TOKENS[1]
    full_tokens: int = FINAL_SCORES * SCORED_TOKENS[1]
    spent_seconds: float = 0.0
    fixed: bool = True

    @property
    def tail_seconds(self) -> float:
        """What follows the last step of a race."""
        return SAFETY * (self.full_tokens + self.quick_tokens) * sum(self.seconds_per_score.values()) + REST_SECONDS

    @property
    def point_seconds(self) -> float:
        """What a point of both curves takes."""
        return self.quick_tokens * sum(self.seconds_per_score.values())


@dataclass
class Contest:
    """Two models on one corpus, in one folder.

    Attributes:
        out: the folder; each model has a run folder of its own in it.
        corpus: the text.
        clock: what is left of the budget.
        watch: told how it goes; "race" after each step, with the row that was logged and the model's name.
    """

    out: Path
    corpus: Corpus
    clock: Clock
    watch: Watch = silent

    def __post_init__(self) -> None:
        """Lay out models and batches."""
        tokenizer = self.corpus.tokenizer
        self.configs = configs(tokenizer.vocabulary, tokenizer.eos)
        rows = max(1, min(ROWS, (self.corpus.splits["train"].count - 1) // LENGTH))
        self.batches = Batches(self.corpus.splits["train"], rows, LENGTH, SEED)
        self.runs = {name: TrainingRun(self.out / name) for name in NAMES}

    def model(self, name: str) -> HybridLM:
        """Fresh weights, the same for every run of this model."""
        torch.manual_seed(SEED)
        model = HybridLM(self.configs[name])
        model.tokenizer = self.corpus.tokenizer
        return model

    def trainer(self, name: str, rate: float, steps: int, precision: str) -> Trainer:
        """A trainer from fresh weights."""
        settings = TrainSettings(tokens=steps * self.batches.tokens, learning_rate=rate, seed=SEED)
        return Trainer.of(self.model(name), settings, steps, precision)

    @property
    def file(self) -> Path:
        """The plan."""
        return self.out / PLAN

    def keep(self, plan: Plan) -> None:
        """Write the plan down."""
        plan.spent_seconds = self.clock.spent
        write_file(self.file, json.dumps(asdict(plan), indent=2) + "\n")

    def plan(self) -> Plan:
        """The plan that was made, or one from how fast this machine is.

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
        """A plan from the time that steps and scores take here, both models by turns."""
        precision = choose_precision("auto", torch.device("cpu"))
        trainers = {name: self.trainer(name, RATES[0], 100, precision) for name in NAMES}
        took: dict[str, list[float]] = {name: [] for name in NAMES}
        until = self.clock.spent + MEASURED_SHARE * self.clock.budget
        for step in range(MEASURED):
            self.watch(Progress("measuring speed", step, MEASURED))
            for name, trainer in trainers.items():
                took[name].append(trainer.step(self.batches.batch(step)).seconds)
            if self.clock.spent > until:
                break
        seconds = {name: _careful(times) for name, times in took.items()}
        few, scores = HeldOut(self.corpus, LENGTH, SCORED_TOKENS[0]), {}
        for name, trainer in trainers.items():
            began = time.perf_counter()
            few.score(trainer.model)
            scores[name] = (time.perf_counter() - began) / SCORED_TOKENS[0]
        return self._divided(precision, seconds, scores)

    def _divided(self, precision: str, seconds: dict[str, float], scores: dict[str, float]) -> Plan:
        """The time that is left, divided among the search for rates, the race and its scores."""
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
        """Held-out bits per byte of each learning rate for each model, on the same short prefix of the data.

        Every model has had the same rates; those for which there is no time are left out.
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

    def race(self, plan: Plan, rates: dict[str, float]) -> None:
        """Train both models step by step on the same batches, with scores and checkpoints on the way."""
        trainers = {}
        for name in NAMES:
            trainers[name] = self.trainer(name, rates[name], plan.steps, plan.precision)
            config = {"model": self.configs[name].to_dict(), "train": {"learning_rate": rates[name]}}
            run = self.runs[name] = TrainingRun.open(self.out / name, config)
            newest = run.newest_good()
            if newest is not None:
                trainers[name].resume(newest)
            run.forget_after(trainers[name].done)
        Race(self, plan, trainers).run()


class Race:
    """The steps of both models, and the clock that they are held against."""

    def __init__(self, contest: Contest, plan: Plan, trainers: dict[str, Trainer]):
        """trainers: where they are."""
        self.contest, self.plan, self.trainers = contest, plan, trainers
        self.clock, self.batches = contest.clock, contest.batches
        self.schedule = next(iter(trainers.values())).schedule
        self.warmup_steps = self.schedule.warmup * plan.steps
        self.recent: deque[float] = deque([sum(plan.seconds_per_step.values())], maxlen=RECENT)
        self.first = min(t.done for t in trainers.values())
        self.begun = self.clock.spent
        self.took = 0.0  # seconds that the last step of both models took
        self.written = dict.fromkeys(NAMES, 0)  # checkpoints of this start

    @property
    def pair(self) -> float:
        """Seconds that a step of both models takes."""
        return sum(self.recent) / len(self.recent)

    def run(self) -> None:
        """Take the steps that the budget holds, at least one."""
        take_steps(list(self.trainers.values()), self.batches.batch, self._after, before=self._before)

    def _before(self, step: int) -> None:
        if step > self.first:
            self.recent.append(self.took or self.pair)
        self.took = 0.0
        if not self.plan.fixed:
            self._replan(step)

    def _replan(self, step: int) -> None:
        """As many steps as the time that is left allows, changed where the rate has not begun to fall."""
        plan, steps = self.plan, self.plan.steps
        if self.clock.left < 2 * self.pair + plan.tail_seconds:  # this step is the last
            self._set_steps(step + 1)
            return
        since = step - self.first
        if since != REPLAN and (since < REPLAN or step % self.every):
            return
        points = plan.evaluations * (1 - step / steps) * plan.point_seconds
        possible = step + int((self.clock.left - plan.tail_seconds - points) / self.pair)
        if step < (1 - self.schedule.decay) * possible and not steps <= possible <= 1.05 * steps:
            self._set_steps(max(possible, step + 1))

    def _set_steps(self, steps: int) -> None:
        """Written down before it is used, so that a race that is killed goes on with the same schedule."""
        if steps == self.plan.steps:
            return
        self.plan.steps = steps
        self.contest.keep(self.plan)
        for trainer in self.trainers.values():
            share = min(1.0, self.warmup_steps / steps)
            trainer.schedule = replace(trainer.schedule, steps=steps, warmup=share)

    @property
    def every(self) -> int:
        """Steps between two points of the curve."""
        return max(1, self.plan.steps // self.plan.evaluations)

    def _after(self, trainer: Trainer, taken: Step) -> None:
        """Write a checkpoint, score and log, where they are due."""
        name = next(n for n, t in self.trainers.items() if t is trainer)
        plan, run = self.plan, self.contest.runs[name]
        self.took += taken.seconds
        row: dict[str, Any] = {"step": trainer.done, "tokens": trainer.done * self.batches.tokens, "loss": taken.loss}
        row |= {"learning_rate": taken.learning_rate, "tokens_per_second": self.batches.tokens / taken.seconds}
        last = trainer.done == plan.steps
        if last or self._checkpoint_is_due(name, trainer.done):
            run.write_checkpoint(trainer.done, trainer.write)
            self.contest.keep(plan)
        if last or trainer.done % self.every == 0:
            row |= self._scores(name, trainer, last)
        run.log(**row)
        left = min(self.clock.left, (plan.steps - trainer.done) * self.pair + self._points_left() + plan.tail_seconds)
        self.contest.watch(Progress("race", trainer.done, plan.steps, max(0.0, left), {"model": name, **row}))

    def _scores(self, name: str, trainer: Trainer, last: bool) -> dict[str, float]:
        contest, began = self.contest, time.perf_counter()
        curve = contest.quick.score(trainer.model)
        self.plan.seconds_per_score[name] = (time.perf_counter() - began) / self.plan.quick_tokens
        scores = contest.full.score(trainer.model) if last else curve
        return {**scores, "held_out_curve": curve["held_out_bits_per_byte"]}  # of one scale, for the token saving

    def _points_left(self) -> float:
        done = max(t.done for t in self.trainers.values())
        return self.plan.evaluations * (1 - done / self.plan.steps) * self.plan.point_seconds

    def _checkpoint_is_due(self, name: str, done: int) -> bool:
        if self.plan.fixed:
            return done % (4 * self.every) == 0
        share = (self.clock.budget - self.begun) / (CHECKPOINTS + 1)
        if share <= 0 or self.clock.spent < self.begun + share * (self.written[name] + 1):
            return False
        self.written[name] += 1
        return True


def _careful(times: Sequence[float]) -> float:
    """The mean of the slower half, the first steps left out where there are enough."""
    settled = sorted(times[2:] if len(times) > 4 else times[1:] or times)
    slower = settled[len(settled) // 2 :]
    return sum(slower) / len(slower)


def read_plan(file: Path, batch_tokens: int) -> Plan | None:
    """The plan of a folder, None where there is none.

    Raises:
        RunError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        plan = Plan(**json.loads(file.read_text(encoding="utf-8")))
        good = plan.steps >= 1 and plan.sweep_steps >= 0 and plan.precision in ("float32", "bfloat16")
        good = good and plan.batch_tokens == batch_tokens and set(plan.seconds_per_step) == set(NAMES)
        good = good and all(x >= 0 for x in (*plan.seconds_per_step.values(), *plan.seconds_per_score.values()))
        good = good and plan.evaluations >= 1 and plan.quick_tokens >= 1 and plan.full_tokens >= 1
    except (ValueError, TypeError, AttributeError, RecursionError, OSError):
        good = False
    if not good:
        raise RunError(f"{file}: is damaged, or of other text; remove it and the plan is made again")
    return plan


def read_sweep(file: Path) -> list[dict[str, Any]]:
    """What was tried of learning rates.

    Raises:
        RunError: it is damaged.
    """
    if not file.is_file():
        return []
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        good = all(r["model"] in NAMES and r["learning_rate"] in RATES for r in rows)
        good = good and all(math.isfinite(r["held_out_bits_per_byte"]) for r in rows)
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        good = False
    if not good:
        raise RunError(f"{file}: is damaged; remove it and the learning rates are tried again")
    return rows


def tokens_to_reach(curve: list[tuple[float, float]], level: float) -> float | None:
    """Tokens at which a falling (tokens, score) curve first comes down to `level`, or None; straight in log tokens."""
    for (t0, s0), (t1, s1) in pairwise(curve):
        if s0 <= level:
            return t0
        if s1 <= level:
            share = (s0 - level) / (s0 - s1)
            return math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0)))
    return curve[0][0] if curve and curve[0][1] <= level else None
