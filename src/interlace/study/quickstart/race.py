"""The race: both models by turns on the same batches, within the time that is left."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

from interlace.runs.progress import Progress
from interlace.runs.training import TrainingRun
from interlace.study.quickstart.contest import Contest
from interlace.study.quickstart.plan import (
    NAMES,
    Plan,
)
from interlace.train.steps import take_steps
from interlace.train.trainer import StepResult, Trainer

CHECKPOINTS = 4  # on the way
RECENT = 8  # steps whose time says what the next will take
REPLAN = 16  # steps after which the number of steps is first looked at again


class Race:
    """The steps of both models, and the clock that limits them."""

    def __init__(self, contest: Contest, plan: Plan, trainers: dict[str, Trainer]):
        """trainers: both models' trainers, where they are now."""
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
        """Return the seconds that a step of both models takes."""
        return sum(self.recent) / len(self.recent)

    def run(self) -> None:
        """Take the steps that the budget allows, at least one."""
        take_steps(list(self.trainers.values()), self.batches.batch, self._after, before=self._before)

    def _before(self, step: int) -> None:
        if step > self.first:
            self.recent.append(self.took or self.pair)
        self.took = 0.0
        if not self.plan.fixed:
            self._replan(step)

    def _replan(self, step: int) -> None:
        """Set as many steps as the time that is left allows, as long as the rate has not begun to fall."""
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
        """Write the number of steps before it is used: a killed race resumes with the same schedule."""
        if steps == self.plan.steps:
            return
        self.plan.steps = steps
        self.contest.keep(self.plan)
        for trainer in self.trainers.values():
            share = min(1.0, self.warmup_steps / steps)
            trainer.schedule = replace(trainer.schedule, steps=steps, warmup=share)

    @property
    def every(self) -> int:
        """Return the steps between two points of the curve."""
        return max(1, self.plan.steps // self.plan.evaluations)

    def _after(self, trainer: Trainer, taken: StepResult) -> None:
        """Write a checkpoint, score and log, if they are due."""
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


def race(contest: Contest, plan: Plan, rates: dict[str, float]) -> None:
    """Train both models step by step on the same batches, with scores and checkpoints on the way."""
    trainers = {}
    for name in NAMES:
        trainers[name] = contest.trainer(name, rates[name], plan.steps, plan.precision)
        config = {"model": contest.configs[name].to_dict(), "train": {"learning_rate": rates[name]}}
        run = contest.runs[name] = TrainingRun.open(contest.out / name, config)
        newest = run.newest_good()
        if newest is not None:
            trainers[name].resume(newest)
        run.forget_after(trainers[name].done)
    Race(contest, plan, trainers).run()
