"""One model in training: take a step, write a checkpoint, resume from one."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
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
from interlace.train.objectives.base import Objective
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
        busiest: how many times its even share the busiest expert of all layers got; None without experts.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    busiest: float | None = None


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

    @staticmethod
    def of(model: HybridLM, settings: TrainSettings, steps: int, precision: str = "float32") -> Trainer:
        """Return the trainer of a recipe: AdamW on float32 master weights, next tokens, warm-up, plateau and decay."""
        plan = settings
        schedule = Schedule(steps, plan.learning_rate, plan.warmup, plan.decay, plan.horizons)
        objective = NextToken(precision, plan.balance_loss)
        optimizer = adamw(model, plan)
        return Trainer(model, optimizer, objective, schedule, clip=plan.clip, balance_rate=plan.balance_rate)

    @property
    def steps(self) -> int:
        """How many steps the schedule is made for."""
        return self.schedule.steps

    def step(self, batch: Batch) -> StepResult:
        """Take one step.

        Raises:
            Diverged: the loss is not finite; the weights are as they were before the step.
        """
        start = time.perf_counter()
        self.model.train()
        rate = self.schedule.rate(self.done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.objective(self.model, batch)
        loss.minimised.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        value, size = loss.value.item(), norm.item()
        if not math.isfinite(value + size):
            raise Diverged(
                f"step {self.done}: loss {value}, gradient norm {size}: training has diverged; lower "
                f"train.learning_rate (now {self.schedule.learning_rate:g})"
            )
        if size > self.clip:
            torch._foreach_mul_(gradients, self.clip / (size + 1e-6))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        blocks: list[Any] = list(self.model.blocks)
        for block, experts in zip(blocks, loss.loads, strict=True):
            if experts is not None and block.mlp.correction is not None:
                block.mlp.rebalance(experts, self.balance_rate)
        self.done += 1
        busiest = max((experts.busiest for experts in loss.loads if experts is not None), default=None)
        return StepResult(value, size, rate, time.perf_counter() - start, busiest)

    def write(self, folder: Path) -> None:
        """Write the model as any other checkpoint, and beside it what training needs to resume."""
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
