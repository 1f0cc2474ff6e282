"""Take one step of a run again, by itself, and find the first layer with a NaN or an infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import RunError
from interlace.base.schema import validate
from interlace.data.batches import Batch
from interlace.model.model import HybridLM
from interlace.model.precision import choose_precision
from interlace.runs.checkpoints import is_whole, step_of
from interlace.runs.progress import Progress, Watch, silent
from interlace.runs.training import TrainingRun
from interlace.train.corpus import again, batches_of, steps_of
from interlace.train.loop import build_model, objective_of
from interlace.train.recipe import Recipe
from interlace.train.trainer import StepResult, Trainer


@dataclass(frozen=True)
class Look:
    """What one part of a model did in a step.

    Attributes:
        part: "embedding", "block 3: mixer (gated_delta)", ..., "loss".
        largest: the largest absolute value of its output.
        finite: whether all of its output is.
        grad_norm: of the gradient of its parameters.
        gradient_finite: whether all of that is.
    """

    part: str
    largest: float
    finite: bool
    grad_norm: float = 0.0
    gradient_finite: bool = True


@dataclass(frozen=True)
class Replay:
    """A step that was taken again.

    Attributes:
        step: its number, from 1.
        loss, grad_norm: as a line of metrics.jsonl has them.
        skipped: why it changes no weight; "" if it does.
        first_bad: the first part whose output is not finite; else the part whose gradient is not finite that the
            backward pass met first; "" if all is finite.
        looks: every part in the order of the forward pass.
        logged: how the run logged it otherwise, as after a changed recipe; "" where it did not.
    """

    step: int
    loss: float
    grad_norm: float
    skipped: str
    first_bad: str
    looks: tuple[Look, ...]
    logged: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def replay(run: TrainingRun, step: int, device: str = "cpu", watch: Watch = silent) -> Replay:
    """Take step `step`, counted from 1, of a run again: from the checkpoint before it, in memory alone.

    Raises:
        RunError: the run has no such step, or is damaged.
    """
    recipe = validate(Recipe, run.config(), "")
    steps = steps_of(recipe)
    if not 1 <= step <= steps:
        raise RunError(f"--step: must lie from 1 to {steps:,}, the run's last step, got {step}")
    corpus = again(recipe.data, run.path / "data")
    precision = run.tables().get("machine", {}).get("precision") or choose_precision(
        recipe.train.precision, torch.device(device)
    )
    model = build_model(recipe, corpus, device, precision)
    objective = objective_of(recipe, run, corpus, precision, device)
    trainer = Trainer.of(model, recipe.train, steps, precision, objective=objective)
    before = [p for p in run.checkpoints() if (step_of(p) or 0) < step and is_whole(p)]
    if before:
        trainer.resume(before[-1])
    batches = batches_of(recipe.data, corpus, recipe.train.seed)
    begun = trainer.done
    while trainer.done < step - 1:
        watch(Progress("replaying", trainer.done - begun, step - 1 - begun))
        trainer.step(*trainer.shares(batches.batch(trainer.done)))
    found = examined(trainer, batches.batch(step - 1))
    line = next((m for m in run.metrics() if m["step"] == step), {})
    if "loss" in line and not math.isclose(line["loss"], found.loss, rel_tol=1e-6):
        said = f"the run logged the loss {line['loss']:g}: its recipe was changed since, or it ran elsewhere"
        found = replace(found, logged=said)
    return found


def examined(trainer: Trainer, batch: Batch) -> Replay:
    """Compute a step's gradients, and look at what every part of the model puts out and gets back."""
    model, outputs = trainer.model, dict[str, list[tuple[float, bool]]]()
    model.train()
    model.through = None
    parts = parts_of(model)
    hooks = [module.register_forward_hook(_noting(outputs, name)) for name, module in parts]
    try:
        loss = trainer.gradients(trainer.shares(batch))
    finally:
        for hook in hooks:
            hook.remove()
    norm = trainer.workers.norm(model)
    bad = int(trainer.guard.judge(loss.value, norm))
    looks, owned = [], set[int]()
    for name, module in parts:
        own = [p for p in module.parameters() if id(p) not in owned and p.grad is not None]
        owned |= {id(p) for p in own}
        size = float(torch.stack([p.grad.float().norm() for p in own if p.grad is not None]).norm()) if own else 0.0
        seen = outputs.get(name, [])
        largest, finite = max((x for x, _ in seen), default=0.0), all(x for _, x in seen)
        looks.append(Look(name, largest, finite, size, bool(torch.isfinite(torch.tensor(size)))))
    value = float(loss.value)
    looks.append(Look("loss", abs(value), bool(torch.isfinite(loss.value))))
    first = next((x.part for x in looks if not x.finite), "")
    first = first or next((x.part for x in reversed(looks) if not x.gradient_finite), "")
    found = StepResult(value, float(norm), 0.0, 0.0, bad=bad)
    return Replay(trainer.done + 1, found.loss, found.grad_norm, found.skipped, first, tuple(looks))


def parts_of(model: HybridLM) -> list[tuple[str, torch.nn.Module]]:
    """Return the parts of a model by name, in the order of the forward pass."""
    found: list[tuple[str, torch.nn.Module]] = [("embedding", model.embedding)]
    for index, block in enumerate(model.blocks):
        kind, after = model.config.kinds[index], model.config.mlp_name(index)
        if getattr(block, "has_mixer", False):
            found.append((f"block {index}: mixer ({kind})", block.get_submodule("mixer")))
        if getattr(block, "has_mlp", False):
            found.append((f"block {index}: feed-forward ({after or kind})", block.get_submodule("mlp")))
        found.append((f"block {index}: its sum and norms", block))
    found.append(("the last norm", model.norm))
    if not model.config.tied_embeddings:
        found.append(("head", model.head))
    return found


def _noting(outputs: dict[str, list[tuple[float, bool]]], name: str) -> Callable[..., None]:
    def note(_: Any, __: Any, output: Any) -> None:
        x: Tensor = output[0] if isinstance(output, tuple) else output
        finite = bool(torch.isfinite(x).all())
        outputs.setdefault(name, []).append((float(x.detach().abs().nan_to_num(posinf=torch.inf).max()), finite))

    return note


def find_run(folder: Path) -> TrainingRun:
    """Return the run in a folder.

    Raises:
        RunError: it holds none.
    """
    run = TrainingRun(folder)
    if not run.file.is_file():
        inner = sorted(str(p.parent) for p in folder.glob("*/run.toml")) if folder.is_dir() else []
        if inner:
            raise RunError(f"{folder}: holds several runs; name one of them: {', '.join(inner)}")
        raise RunError(f"{folder}: is no run folder; name one that `interlace train` made")
    return run
