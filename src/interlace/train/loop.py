"""The loop of `interlace train`: steps, held-out scores and checkpoints, in a run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interlace.base.errors import ConfigError, Diverged
from interlace.checkpoint.fingerprint import fingerprint
from interlace.checkpoint.load import load
from interlace.data.batches import batches as batches_of
from interlace.data.prepare import Report
from interlace.data.tokens import Corpus
from interlace.model.device import resolve_device
from interlace.model.model import HybridLM
from interlace.model.precision import choose_precision
from interlace.runs.lock import hold_folder
from interlace.train.corpus import check_fit, check_inputs, open_corpus
from interlace.train.recipe import Recipe
from interlace.train.run import RunFolder, facts
from interlace.train.schedule import horizon_steps
from interlace.train.trainer import Trainer

PARENT = "INTERLACE_PARENT"  # set for the processes of a study, whose orphans may still hold a folder for a moment
ORPHAN_SECONDS = 5.0
Evaluate = Callable[[HybridLM], dict[str, float]]


@dataclass
class Hooks:
    """What the loop tells and asks.

    Attributes:
        evaluate: scores the model on held-out text.
        on_start: (step to start from, steps in all, tokens per step).
        on_step: what was logged for this step.
        on_data: how far the preparation of text is.
    """

    evaluate: Callable[[Corpus], Evaluate]
    on_start: Callable[[int, int, int], None] = lambda *_: None
    on_step: Callable[[dict[str, Any]], None] = lambda _: None
    on_data: Report = lambda *_: None


def steps_of(recipe: Recipe) -> int:
    """Whole batches that hold the tokens asked for."""
    return -(-recipe.train.tokens // (recipe.data.rows * recipe.data.length))


def due(step: int, steps: int, times: int) -> bool:
    """Whether something done `times` times over the run, the end included, is due after `step` steps."""
    return step * times // steps > (step - 1) * times // steps


def build_model(recipe: Recipe, corpus: Corpus, device: str) -> HybridLM:
    """Fresh weights from the recipe's seed, or those of the checkpoint it starts from, with the corpus' tokenizer.

    Raises:
        ConfigError: the checkpoint's config or tokenizer is not the recipe's.
    """
    if recipe.train.start:
        return _started(recipe, corpus, device)
    tokens = recipe.model.tokens
    if not tokens.eos and corpus.tokenizer.eos is not None:
        tokens = tokens.model_copy(update={"eos": (corpus.tokenizer.eos,)})
    torch.manual_seed(recipe.train.seed)
    model = HybridLM(recipe.model.model_copy(update={"tokens": tokens}), device=device)
    model.tokenizer = corpus.tokenizer
    return model


def _started(recipe: Recipe, corpus: Corpus, device: str) -> HybridLM:
    start = recipe.train.start
    model = load(start, dtype=torch.float32, device=device)
    ours, theirs = (config.replace(tokens={}).to_dict() for config in (recipe.model, model.config))
    if ours != theirs:
        raise ConfigError(f"model: is not what {start} holds; leave [model] out where train.start is given")
    if model.tokenizer is not None and model.tokenizer.hash() != corpus.tokenizer.hash():
        raise ConfigError(f"data.tokenizer: is not the tokenizer of {start}; leave it out where train.start is given")
    model.tokenizer = corpus.tokenizer
    return model


def train(recipe: Recipe, out: Path, hooks: Hooks, device: str = "cpu") -> RunFolder:
    """Train, or go on training, in the run folder `out`; return it when the last step is done.

    Raises:
        RunError: `out` belongs to a different run, another process works in it, or what it began with was changed.
        ConfigError, DataError: the recipe and the data do not fit; a run that could not begin leaves nothing behind.
        Failure: training diverged, or the disk refused.
    """
    resolve_device(device)
    run = RunFolder(out)
    if not run.belongs_to(recipe.to_dict()) or not run.has_begun():
        check_inputs(recipe)
    with hold_folder(run.path, wait_seconds=ORPHAN_SECONDS if os.environ.get(PARENT) else 0.0):
        run = RunFolder.open(run.path, recipe.to_dict())
        run.remember(machine=facts(device))
        try:
            trainer, corpus = _trainer(recipe, run, hooks, device)
        except BaseException:
            run.withdraw()
            raise
        return _steps(recipe, run, trainer, corpus, hooks)


def _trainer(recipe: Recipe, run: RunFolder, hooks: Hooks, device: str) -> tuple[Trainer, Corpus]:
    """What takes the next step of a run, everything that it reads checked."""
    newest = run.newest_good()
    corpus = open_corpus(recipe.data, run.path / "data", hooks.on_data, begun=run.has_begun())
    check_fit(recipe, corpus)
    batches_of(corpus.splits["train"], recipe.data.rows, recipe.data.length, recipe.train.seed)
    run.check("data", corpus.fingerprint(), f"{corpus.folder}: the data")
    model = build_model(recipe, corpus, device)
    if recipe.train.start:
        run.check("start", fingerprint(recipe.train.start), f"train.start: {recipe.train.start}")
    precision = choose_precision(recipe.train.precision, model.device)
    run.remember(precision=precision)
    trainer = Trainer(model, recipe.train, steps_of(recipe), precision)
    if newest is not None:
        trainer.resume(newest)
    return trainer, corpus


def _steps(recipe: Recipe, run: RunFolder, trainer: Trainer, corpus: Corpus, hooks: Hooks) -> RunFolder:
    """Take the steps that are left."""
    steps, model = trainer.steps, trainer.model
    batches = batches_of(corpus.splits["train"], recipe.data.rows, recipe.data.length, recipe.train.seed)
    run.forget_after(trainer.done)
    evaluate = hooks.evaluate(corpus)
    hooks.on_start(trainer.done, steps, batches.tokens)
    ends = horizon_steps(steps, recipe.train.horizons)
    while trainer.done < steps:
        started = time.perf_counter()
        try:
            step = trainer.step(batches.batch(trainer.done))
        except Diverged as error:
            run.log(step=trainer.done, tokens=trainer.done * batches.tokens, diverged=str(error))
            raise
        row: dict[str, Any] = {
            "step": trainer.done,
            "tokens": trainer.done * batches.tokens,
            "loss": step.loss,
            "grad_norm": step.grad_norm,
            "learning_rate": step.learning_rate,
            "tokens_per_second": batches.tokens / step.seconds,
        }
        if step.busiest is not None:
            row["busiest_expert"] = step.busiest
        if due(trainer.done, steps, recipe.train.checkpoints):  # before evaluating: a failing score loses nothing
            run.write_checkpoint(trainer.done, trainer.write)
        if trainer.done in ends:
            row["horizon"] = trainer.done / steps
        if trainer.done in ends or due(trainer.done, steps, recipe.train.evaluations):
            row |= evaluate(model)
        row["seconds"] = time.perf_counter() - started
        run.log(**row)
        hooks.on_step(row)
    return run
