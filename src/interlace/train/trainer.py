"""One model in training: take a step, write a checkpoint, resume from one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import Diverged
from interlace.data.batches import Batch
from interlace.layers.moe import Load
from interlace.model.model import HybridLM
from interlace.train import saved
from interlace.train.average import Average
from interlace.train.blocks import through
from interlace.train.guard import IN_A_ROW, Guard
from interlace.train.objectives.base import Loss, Objective
from interlace.train.objectives.next_token import NextToken
from interlace.train.optimizer import optimizer_of, train_beside
from interlace.train.recipe import TrainSettings
from interlace.train.saved import Saved
from interlace.train.schedule import Schedule
from interlace.train.workers import Alone

MEASURED_EVERY = 10  # steps: how far the weights moved
SAMPLED, LARGE = 16, 1 << 20  # every so many rows are looked at, of matrices with more elements


@dataclass(frozen=True)
class StepResult:
    """The results of one step.

    Attributes:
        loss: nats per token.
        grad_norm: the gradient's norm before clipping.
        seconds: that the step took on its device.
        busiest: how many times its even share the busiest expert of all layers got; None without experts.
        bad: how many bad steps there are in a row with this one, which then changed no weight; 0 for a good step.
        update_ratio: the length of what was added to the matrices that are trained, beside theirs; None where it was
            not measured.
        more: other numbers of the objective, by name.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    busiest: float | None = None
    bad: int = 0
    update_ratio: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def skipped(self) -> str:
        """Why the step changed no weight; "" if it did."""
        if not self.bad:
            return ""
        fault = "a spike of the gradient" if math.isfinite(self.loss + self.grad_norm) else "not finite"
        return f"{fault}: loss {self.loss:g}, gradient norm {self.grad_norm:g}"

    @property
    def waits(self) -> bool:
        """Whether reading a result may wait for the device."""
        return False


class EnqueuedStep(StepResult):
    """The results of a step that a GPU may still work on: whoever reads one waits until the step is done.

    Raises, when a result is read:
        Diverged: the step is the third bad one in a row.
    """

    def __init__(self, learning_rate: float, read: Callable[[], StepResult]):
        """read: waits for the step; called once."""
        self.__dict__.update(learning_rate=learning_rate, _read=read)

    @cached_property
    def _result(self) -> StepResult:
        found: StepResult = self.__dict__["_read"]()
        return found

    @property
    def waits(self) -> bool:
        """Return True."""
        return True

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self._result.loss

    @property
    def grad_norm(self) -> float:
        """The gradient's norm before clipping."""
        return self._result.grad_norm

    @property
    def seconds(self) -> float:
        """Seconds that the step took on its device."""
        return self._result.seconds

    @property
    def busiest(self) -> float | None:
        """The largest load of an expert, in even shares; None without experts."""
        return self._result.busiest

    @property
    def bad(self) -> int:
        """How many bad steps there are in a row with this one."""
        return self._result.bad

    @property
    def update_ratio(self) -> float | None:
        """The length of what was added to the matrices, beside theirs; None where it was not measured."""
        return self._result.update_ratio

    @property
    def more(self) -> Mapping[str, float]:
        """Other numbers of the objective, by name."""
        return self._result.more


class _Outcome:
    """The results of a step on their way from the device to the host."""

    def __init__(
        self, step: int, rate: float, results: list[Tensor], names: Sequence[str], start: Any, enqueued_seconds: float
    ):
        """Begin to copy results, scalars on the device.

        Args:
            results: loss, norm, how bad, update ratio, then the objective's other numbers, then loads.
            names: of the other numbers.
            start: an event recorded before the step, None on a CPU.
        """
        self.step, self.rate, self.start, self.end, self.seconds = step, rate, start, None, enqueued_seconds
        self.names = names
        stacked = torch.stack([x.detach().to(torch.float32) for x in results])
        self.host = stacked
        if stacked.device.type == "cuda":
            self.host = torch.empty(stacked.shape, pin_memory=True)
            self.host.copy_(stacked, non_blocking=True)
            self.end = _event(stacked.device)

    def result(self) -> StepResult:
        """Wait until the step is done, and return its results."""
        seconds = self.seconds
        if self.end is not None:
            self.end.synchronize()
            seconds = self.start.elapsed_time(self.end) / 1000
        loss, norm, bad, ratio, *rest = self.host.tolist()
        more, busiest = dict(zip(self.names, rest, strict=False)), rest[len(self.names) :]
        measured = None if math.isnan(ratio) else ratio
        return StepResult(loss, norm, self.rate, seconds, max(busiest, default=None), round(bad), measured, more)


def _event(device: torch.device) -> Any:
    """Return an event that the device has come to when all that was asked of it so far is done."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


class Trainer:
    """Trains a model step by step, with an optimizer, an objective and a schedule.

    Attributes:
        model: on its device, float32.
        schedule: the learning rate of each step; may be replaced between steps.
        done: steps taken, bad ones included.
        average: the moving average of the weights, or None.
        workers: with whom it trains.
        beside: parameters of the objective that are trained too, by name.
    """

    def __init__(
        self,
        model: HybridLM,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        schedule: Schedule,
        *,
        clip: float = 1.0,
        spike: float = 0.0,
        average: float = 0.0,
        balance_rate: float = 1e-3,
        accumulate: int = 1,
        workers: Alone | None = None,
        dropout_seed: int | None = None,
    ):
        """Prepare to train; see `TrainSettings` for the numbers.

        dropout_seed: from which each step's dropout is drawn; None where there is none.
        """
        self.model, self.optimizer, self.objective, self.schedule = model, optimizer, objective, schedule
        self.clip, self.balance_rate, self.accumulate, self.done = clip, balance_rate, accumulate, 0
        self.workers, self.dropout_seed = workers or Alone(), dropout_seed
        self.beside: dict[str, Tensor] = dict(getattr(objective, "beside", {}))
        if self.beside:
            train_beside(optimizer, list(self.beside.values()))
        self.guard = Guard(spike, model.device)
        self.average = Average(model, average, self.workers.local) if average else None
        self._deferred: bool | None = None
        self._last: _Outcome | None = None  # of the step whose results were not looked at

    @staticmethod
    def of(
        model: HybridLM,
        settings: TrainSettings,
        steps: int,
        precision: str = "float32",
        workers: Alone | None = None,
        objective: Callable[[NextToken], Objective] = lambda objective: objective,
    ) -> Trainer:
        """Return the trainer of a recipe: its optimizer on float32 master weights, its objective, its schedule.

        objective: given that of next tokens, returns the one to train by.
        """
        plan, workers = settings, workers or Alone()
        drops = plan.lora is not None and plan.lora.dropout > 0
        model.through = through(plan.compile, plan.recompute, draws=drops)
        schedule = Schedule(
            steps,
            plan.learning_rate,
            plan.warmup,
            plan.decay,
            plan.horizons,
            plan.schedule,
            plan.decay_shape,
            plan.final_rate,
        )
        return Trainer(
            model,
            optimizer_of(
                model,
                plan,
                precision,
                workers.orthogonalise,
                workers.local,
                workers.routes(model, plan.optimizer),
            ),
            objective(NextToken(precision, plan.balance_loss, plan.z_loss, workers.total)),
            schedule,
            clip=plan.clip,
            spike=plan.spike,
            average=plan.average,
            balance_rate=plan.balance_rate,
            accumulate=plan.accumulate,
            workers=workers,
            dropout_seed=plan.seed if drops else None,
        )

    @property
    def steps(self) -> int:
        """How many steps the schedule is made for."""
        return self.schedule.steps

    @property
    def deferred(self) -> bool:
        """Whether steps are only enqueued, and their results read while the device does the next step.

        That takes an optimizer that can leave a step out without asking the host: torch's fused AdamW.
        """
        if self._deferred is None:
            fused = all(group.get("fused") for group in self.optimizer.param_groups)
            self._deferred = fused and self.model.device.type == "cuda"
        return self._deferred

    def shares(self, batch: Batch) -> list[Batch]:
        """Return what this worker reads of a step's batch, in the parts that `step` takes."""
        return self.workers.shares(batch, self.accumulate)

    def step(self, *parts: Batch) -> StepResult:
        """Take one step.

        A step whose loss or gradient is not finite, or whose gradient norm is a spike, changes no weight.
        On a GPU the step is enqueued, and the host waits for the step before it, at most.

        Args:
            parts: what this worker reads of the step's batch; see `shares`.

        Raises:
            Diverged: this step is the third bad one in a row; on a GPU, it may be the step before. `done` is then that
                step, and the weights are as they were before the first of the three.
        """
        start = time.perf_counter()
        began = _event(self.model.device) if self.deferred else None
        self.model.train()
        if self.dropout_seed is not None:  # a function of the step, so that a run goes on as it would have
            torch.manual_seed(((self.dropout_seed << 24) + (self.done << 8) + self.workers.reader[0]) % (1 << 63))
        rate = self.schedule.rate(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        loss = self.gradients(parts)
        norm = self.workers.norm(self.model)
        bad = self.guard.judge(loss.value, norm)
        if self.deferred:
            return self._enqueued(loss, norm, bad, rate, (began, start))
        found = StepResult(loss.value.item(), norm.item(), rate, 0.0, bad=int(bad))
        if found.bad:
            self.optimizer.zero_grad(set_to_none=True)
            self.done += 1
        else:
            if found.grad_norm > self.clip:
                gradients = [self.workers.local(p.grad) for p in self.model.parameters() if p.grad is not None]
                torch._foreach_mul_(gradients, self.clip / (found.grad_norm + 1e-6))
            ratio = self._update(loss, self.balance_rate)
            found = replace(found, update_ratio=None if ratio is None else float(ratio))
        self._check(self.done - 1, found)
        busiest = max((experts.busiest for experts in loss.loads if experts is not None), default=None)
        more = {name: float(value) for name, value in loss.more.items()}
        return replace(found, seconds=time.perf_counter() - start, busiest=busiest, more=more)

    def gradients(self, parts: Sequence[Batch]) -> Loss:
        """Compute the gradients of a step, part by part; return the loss of the whole batch of all workers."""
        total: Loss | None = None
        for number, part in enumerate(parts, start=1):
            self.workers.before_part(self.model, number == len(parts))
            loss = self.objective(self.model, part)
            loss.minimised.backward()
            value, loads = loss.value.detach(), [x and Load(x.counts, x.scores.detach()) for x in loss.loads]
            more = loss.more
            if total is not None:
                value = value + total.value
                more = {name: x + total.more[name] for name, x in more.items()}
                loads = [
                    x and y and Load(x.counts + y.counts, x.scores) for x, y in zip(loads, total.loads, strict=True)
                ]
            total = Loss(value, value, loads, more)
        assert total is not None
        self.workers.finish(self.model)
        loads = [x and Load(self.workers.total(x.counts), x.scores) for x in total.loads]
        more = {name: self.workers.total(x) for name, x in total.more.items()}
        return Loss(self.workers.total(total.value), total.value, loads, more)

    def _enqueued(self, loss: Loss, norm: Tensor, bad: Tensor, rate: float, began: tuple[Any, float]) -> StepResult:
        """Enqueue the end of a step, then look at the results of the step before.

        began: the step's first event, and the host's clock at that moment.
        """
        optimizer: Any = self.optimizer
        optimizer.found_inf = (bad > 0).to(torch.float32)
        excess = (norm.to(torch.float32) + 1e-6) / self.clip
        optimizer.grad_scale = excess.clamp(min=1)  # by which the optimizer divides gradients
        good = 1 - optimizer.found_inf
        ratio = self._update(loss, self.balance_rate * good, good)
        loads = [experts.most for experts in loss.loads if experts is not None]
        event, start = began
        results = [loss.value, norm, bad, torch.full_like(norm, torch.nan) if ratio is None else ratio]
        results += [*loss.more.values(), *loads]
        outcome = _Outcome(self.done - 1, rate, results, list(loss.more), event, time.perf_counter() - start)
        before, self._last = self._last, outcome
        if before is not None:
            self._read(before)
        return EnqueuedStep(rate, partial(self._read, outcome))

    def _update(self, loss: Loss, balance_rate: float | Tensor, good: Tensor | None = None) -> Tensor | None:
        """Change the weights; return the length of the change beside theirs, at every tenth step."""
        measured = self.done % MEASURED_EVERY == 0
        local = self.workers.local
        trained = [p for p in self.model.parameters() if p.ndim > 1 and p.requires_grad] if measured else []
        matrices = [local(p.detach()) for p in trained]
        matrices = [x[:: SAMPLED if x.numel() > LARGE else 1] for x in matrices]
        before = [x.clone() for x in matrices]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        blocks: list[Any] = list(self.model.blocks)
        for block, experts in zip(blocks, loss.loads, strict=True):
            if experts is not None and block.mlp.correction is not None and block.mlp.router.weight.requires_grad:
                block.mlp.rebalance(experts, balance_rate)
        if self.average is not None:
            self.average.update(self.done, good)
        self.done += 1
        return self._ratio(matrices, before, good) if measured else None

    @torch.no_grad()
    def _ratio(self, after: list[Tensor], before: list[Tensor], good: Tensor | None) -> Tensor:
        whole = torch.stack(torch._foreach_norm(before)).square().sum()
        torch._foreach_sub_(before, after)
        changed = torch.stack(torch._foreach_norm(before)).square().sum()
        changed, whole = self.workers.over_model(torch.stack((changed, whole))).unbind()
        ratio = (changed / whole.clamp(min=1e-30)).sqrt()
        return ratio if good is None else torch.where(good > 0, ratio, torch.nan)

    def _read(self, outcome: _Outcome) -> StepResult:
        found = outcome.result()
        self._check(outcome.step, found)
        return found

    def _check(self, step: int, found: StepResult) -> None:
        if found.bad < IN_A_ROW:
            return
        self.done, self._last = step, None
        self.guard.forgive()
        self.optimizer.zero_grad(set_to_none=True)
        raise Diverged(
            f"step {step + 1}: {found.skipped}; it is the third in a row that changed no weight: training has "
            f"diverged; lower train.learning_rate (now {self.schedule.learning_rate:g})"
        )

    def settle(self) -> None:
        """Wait for the last step.

        Raises:
            Diverged: it was the third bad one in a row.
        """
        if self._last is not None:
            self._read(self._last)

    def saved(self) -> Saved:
        """Return all that a checkpoint holds, in the memory in which it is trained.

        Raises:
            Diverged: the last step was the third bad one in a row.
        """
        self.settle()
        facts = {"step": self.done, "guard": self.guard.to_dict()}
        average = None if self.average is None else self.average.tensors
        moments = saved.moments_of(self._parameters(), self.optimizer)
        moments |= {f"value/{name}": p.detach() for name, p in self.beside.items()}
        return Saved(self.model, moments, average, facts)

    def write(self, folder: Path) -> None:
        """Write the model as any other checkpoint, and beside it what training needs to resume."""
        self.saved().write(folder)

    def resume(self, folder: Path) -> None:
        """Resume from a folder that `write` filled, bit for bit, or that another number of workers filled."""
        facts = saved.facts_of(folder)
        self.done = facts["step"]
        guard = facts.get("guard", {"norms": [], "good": self.done, "bad": 0})  # not in folders from before it
        self.guard.resume(guard)
        average = None if self.average is None else self.average.tensors
        moments = self.workers.read(folder, Saved(self.model, {}, average, facts, beside=self.beside))
        saved.take_moments(self._parameters(), self.optimizer, moments, guard["good"])  # AdamW does not count bad steps
        for name, p in self.beside.items():
            p.data.copy_(moments[f"value/{name}"])

    def _parameters(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **self.beside}
