"""One model in training: a step, a checkpoint, and the way back from one."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
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
from interlace.layers.moe import MoE
from interlace.model.model import HybridLM
from interlace.ops.core import kernels
from interlace.train.objectives.next_token import next_token_loss
from interlace.train.recipe import TrainSettings
from interlace.train.schedule import warmup_stable_decay


@dataclass(frozen=True)
class Step:
    """What one step did.

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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every parameter in exactly one group: matrices decay; embeddings, taps, norms, gates and biases do not."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed |= {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "MATRICES", ())}
    decayed -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


class Trainer:
    """AdamW on float32 master weights, with warm-up, plateau and decay.

    Attributes:
        model: on its device, float32.
        done: steps taken.
        steps: steps the schedule is made for.
    """

    def __init__(self, model: HybridLM, settings: TrainSettings, steps: int, precision: str = "float32"):
        """precision: "float32" or "bfloat16", of the matrix products."""
        kernels.keep_memory()
        self.model, self.settings, self.steps, self.precision = model, settings, steps, precision
        self.done = 0
        self.mixtures = [m for m in model.modules() if isinstance(m, MoE)]
        groups = parameter_groups(model, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)

    def step(self, batch: Batch) -> Step:
        """Take one step.

        Raises:
            Diverged: the loss is not finite; the weights are as they were before the step.
        """
        start = time.perf_counter()
        self.model.train()
        plan = self.settings
        factor = warmup_stable_decay(self.done, self.steps, plan.warmup, plan.decay, plan.horizons)
        rate = plan.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(batch)
        (loss + self.unevenness()).backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        value, size = loss.item(), norm.item()
        if not math.isfinite(value + size):
            raise Diverged(
                f"step {self.done}: loss {value}, gradient norm {size}: training has diverged; lower "
                f"train.learning_rate (now {self.settings.learning_rate:g})"
            )
        if size > self.settings.clip:
            torch._foreach_mul_(gradients, self.settings.clip / (size + 1e-6))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for mixture in self.mixtures:
            if mixture.correction is not None:
                mixture.rebalance(self.settings.balance_rate)
        self.done += 1
        loads = [m.load.busiest for m in self.mixtures if m.load is not None]
        return Step(value, size, rate, time.perf_counter() - start, max(loads, default=None))

    def loss(self, batch: Batch) -> Tensor:
        """Mean nats per target of a batch."""
        device, dtype = self.model.device, getattr(torch, self.precision)
        low = dtype != torch.float32
        with torch.autocast(device.type, dtype=dtype) if low else nullcontext():
            hidden, _, _ = self.model.hidden(batch.tokens.to(device), batch.segments)
        weights = None if batch.weights is None else batch.weights.to(device)
        return next_token_loss(
            hidden, self.model.head.weight, batch.targets.to(device), dtype if low else None, weights
        )

    def unevenness(self) -> Tensor | float:
        """What the last pass' load of the experts costs, where they have no correction: nothing beside text's nats."""
        loads = [m.load for m in self.mixtures if m.load is not None and m.correction is None]
        if not loads:
            return 0.0
        return self.settings.balance_loss * torch.stack([load.balance for load in loads]).mean()

    def write(self, folder: Path) -> None:
        """The model as any other checkpoint, and beside it what training needs to go on."""
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
        """Go on from a folder that `write` filled, bit for bit."""
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
