"""One model in training: take a step, write a checkpoint, resume from one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interlace.base.errors import Diverged
from interlace.checkpoint.load import load
from interlace.checkpoint.save import write_model
from interlace.checkpoint.tensors import read_header, read_into, write
from interlace.data.batches import Batch
from interlace.model.model import HybridLM
from interlace.train.blocks import through
from interlace.train.objectives.base import Loss, Objective
from interlace.train.objectives.next_token import NextToken
from interlace.train.optimizer import adamw
from interlace.train.recipe import TrainSettings
from interlace.train.schedule import Schedule


@dataclass(frozen=True)
class StepResult:
    """The results of one step.

    Attributes:
        loss: nats per token.
        grad_norm: the gradient's norm before clipping.
        seconds: that the step took on its device.
        busiest: how many times its even share the busiest expert of all layers got; None without experts.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    busiest: float | None = None

    @property
    def waits(self) -> bool:
        """Whether reading a result may wait for the device."""
        return False


class EnqueuedStep(StepResult):
    """The results of a step that a GPU may still work on: whoever reads one waits until the step is done.

    Raises, when a result is read:
        Diverged: the step's loss or gradient was not finite.
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


class _Outcome:
    """The results of a step on their way from the device to the host."""

    def __init__(self, step: int, rate: float, results: list[Tensor], start: Any, enqueued_seconds: float):
        """results: scalars on the device; start: an event recorded before the step, None on a CPU."""
        self.step, self.rate, self.start, self.end, self.seconds = step, rate, start, None, enqueued_seconds
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
        loss, norm, *busiest = self.host.tolist()
        return StepResult(loss, norm, self.rate, seconds, max(busiest, default=None))


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
        done: steps taken.
    """

    def __init__(
        self,
        model: HybridLM,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        schedule: Schedule,
        *,
        clip: float = 1.0,
        balance_rate: float = 1e-3,
    ):
        """clip: the largest gradient norm. balance_rate: by how much a step moves the corrections of experts."""
        self.model, self.optimizer, self.objective, self.schedule = model, optimizer, objective, schedule
        self.clip, self.balance_rate, self.done = clip, balance_rate, 0
        self._deferred: bool | None = None
        self._last: _Outcome | None = None  # of the step whose results were not looked at
        self._spoilt: Tensor | None = None  # on the device: whether a step's loss or gradient was not finite

    @staticmethod
    def of(model: HybridLM, settings: TrainSettings, steps: int, precision: str = "float32") -> Trainer:
        """Return the trainer of a recipe: AdamW on float32 master weights, next tokens, warm-up, plateau and decay."""
        plan = settings
        schedule = Schedule(steps, plan.learning_rate, plan.warmup, plan.decay, plan.horizons)
        objective = NextToken(precision, plan.balance_loss)
        optimizer = adamw(model, plan)
        model.through = through(plan.compile, plan.recompute)
        return Trainer(model, optimizer, objective, schedule, clip=plan.clip, balance_rate=plan.balance_rate)

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

    def step(self, batch: Batch) -> StepResult:
        """Take one step.

        On a GPU the step is enqueued, and the host waits for the step before it, at most.

        Raises:
            Diverged: the loss or gradient of this step is not finite, or on a GPU, that of the step before. The
                weights, and `done`, are as they were before that step.
        """
        start = time.perf_counter()
        began = _event(self.model.device) if self.deferred else None
        self.model.train()
        rate = self.schedule.rate(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.objective(self.model, batch)
        loss.minimised.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.deferred:
            return self._enqueued(loss, norm, rate, (began, start))
        value, size = loss.value.item(), norm.item()
        self._check(self.done, value, size)
        if size > self.clip:
            torch._foreach_mul_(gradients, self.clip / (size + 1e-6))
        self._update(loss, self.balance_rate)
        busiest = max((experts.busiest for experts in loss.loads if experts is not None), default=None)
        return StepResult(value, size, rate, time.perf_counter() - start, busiest)

    def _enqueued(self, loss: Loss, norm: Tensor, rate: float, began: tuple[Any, float]) -> StepResult:
        """Enqueue the end of a step, then look at the results of the step before.

        began: the step's first event, and the host's clock at that moment.
        After a loss or gradient that is not finite, this step and those that follow it change nothing on the device.
        """
        spoilt = ~(torch.isfinite(loss.value.detach()) & torch.isfinite(norm))  # whose sum might overflow
        self._spoilt = spoilt if self._spoilt is None else self._spoilt | spoilt
        optimizer: Any = self.optimizer
        optimizer.found_inf = self._spoilt.to(torch.float32)
        excess = (norm.to(torch.float32) + 1e-6) / self.clip
        optimizer.grad_scale = excess.clamp(min=1)  # by which the optimizer divides gradients
        self._update(loss, self.balance_rate * (1 - optimizer.found_inf))
        loads = [experts.most for experts in loss.loads if experts is not None]
        event, start = began
        outcome = _Outcome(self.done - 1, rate, [loss.value, norm, *loads], event, time.perf_counter() - start)
        before, self._last = self._last, outcome
        if before is not None:
            self._read(before)
        return EnqueuedStep(rate, partial(self._read, outcome))

    def _update(self, loss: Loss, balance_rate: float | Tensor) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        blocks: list[Any] = list(self.model.blocks)
        for block, experts in zip(blocks, loss.loads, strict=True):
            if experts is not None and block.mlp.correction is not None:
                block.mlp.rebalance(experts, balance_rate)
        self.done += 1

    def _read(self, outcome: _Outcome) -> StepResult:
        found = outcome.result()
        self._check(outcome.step, found.loss, found.grad_norm)
        return found

    def _check(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss + norm):
            return
        self.done, self._last, self._spoilt = step, None, None
        self.optimizer.zero_grad(set_to_none=True)
        raise Diverged(
            f"step {step}: loss {loss}, gradient norm {norm}: training has diverged; lower "
            f"train.learning_rate (now {self.schedule.learning_rate:g})"
        )

    def settle(self) -> None:
        """Wait for the last step.

        Raises:
            Diverged: its loss or gradient was not finite.
        """
        if self._last is not None:
            self._read(self._last)

    def write(self, folder: Path) -> None:
        """Write the model as any other checkpoint, and beside it what training needs to resume.

        Raises:
            Diverged: the last step's loss or gradient was not finite; nothing is written.
        """
        self.settle()
        write_model(self.model, folder)
        names = dict(self.model.named_parameters())
        state = self.optimizer.state
        moments = [
            (f"{key}/{name}", tuple(state[p][key].shape), state[p][key])
            for name, p in names.items()
            for key in ("exp_avg", "exp_avg_sq")
            if p in state
        ]
        write(folder / "optimizer.safetensors", moments)
        (folder / "training.json").write_text(json.dumps({"step": self.done}) + "\n", encoding="utf-8")

    @torch.no_grad()
    def resume(self, folder: Path) -> None:
        """Resume from a folder that `write` filled, bit for bit."""
        stored = load(folder)
        for ours, theirs in zip(self.model.parameters(), stored.parameters(), strict=True):
            ours.copy_(theirs)
        self.done = json.loads((folder / "training.json").read_text(encoding="utf-8"))["step"]
        entries = read_header(folder / "optimizer.safetensors")
        for name, parameter in self.model.named_parameters():
            state: dict[str, Tensor] = {}
            for key in ("exp_avg", "exp_avg_sq"):
                full = f"{key}/{name}"
                if full in entries:
                    state[key] = torch.empty_like(parameter)
                    read_into(entries[full], full, state[key])
            if state:
                state["step"] = torch.tensor(float(self.done), device=parameter.device)
                self.optimizer.state[parameter] = state
