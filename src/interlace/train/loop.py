"""The loop of `interlace train`: steps, held-out scores and checkpoints, in a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interlace.base.errors import ConfigError, Diverged
from interlace.checkpoint.load import load
from interlace.data.batches import batches as batches_of
from interlace.data.chat import read_template
from interlace.data.prepare import MANIFEST, Chat, Report, prepare
from interlace.data.sources import Sources
from interlace.data.tokens import Corpus
from interlace.model.model import HybridLM
from interlace.train.precision import choose_precision
from interlace.train.recipe import DataSettings, Recipe
from interlace.train.run import RunFolder
from interlace.train.schedule import horizon_steps
from interlace.train.trainer import Trainer

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


def open_corpus(data: DataSettings, cache: Path, report: Report = lambda *_: None) -> Corpus:
    """The prepared folder that a recipe names, or one made from its text in `cache` and kept there."""
    paths = [Path(p).expanduser() for p in data.source]
    if len(paths) == 1 and (paths[0] / MANIFEST).is_file():
        return Corpus.open(paths[0])
    if not (cache / MANIFEST).is_file():
        template = read_template(data.template) if data.template else None
        chat = Chat(template, data.turns)
        prepare(
            Sources(paths, data.field), data.tokenizer, cache, held_out_share=data.held_out, chat=chat, report=report
        )
    return Corpus.open(cache)


def check_fit(recipe: Recipe, corpus: Corpus) -> None:
    """Raise ConfigError if the model cannot read this corpus' tokens."""
    if corpus.tokenizer.vocabulary > recipe.model.vocabulary:
        raise ConfigError(
            f"model.vocabulary: is {recipe.model.vocabulary}, but the tokenizer has {corpus.tokenizer.vocabulary} ids; "
            "raise it, or use a smaller tokenizer"
        )
    limit = recipe.model.max_positions
    if limit is not None and recipe.data.length > limit:
        raise ConfigError(f"data.length: {recipe.data.length} is past the model's max_positions = {limit}")


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
    start = Path(recipe.train.start).expanduser()
    model = load(start, dtype=torch.float32, device=device)
    if model.config.to_dict() != recipe.model.to_dict():
        raise ConfigError(f"model: is not what {start} holds; leave [model] out where train.start is given")
    if model.tokenizer is not None and model.tokenizer.hash() != corpus.tokenizer.hash():
        raise ConfigError(f"data.tokenizer: is not the tokenizer of {start}; leave it out where train.start is given")
    model.tokenizer = corpus.tokenizer
    return model


def train(recipe: Recipe, out: Path, hooks: Hooks, device: str = "cpu") -> RunFolder:
    """Train, or go on training, in the run folder `out`; return it when the last step is done.

    Raises:
        RunError: `out` belongs to a different run.
        ConfigError, DataError: the recipe and the data do not fit.
        Failure: training diverged, or the disk refused.
    """
    run = RunFolder.open(out, recipe.to_dict())
    corpus = open_corpus(recipe.data, out / "data", hooks.on_data)
    check_fit(recipe, corpus)
    batches = batches_of(corpus.splits["train"], recipe.data.rows, recipe.data.length, recipe.train.seed)
    steps = steps_of(recipe)
    model = build_model(recipe, corpus, device)
    trainer = Trainer(model, recipe.train, steps, choose_precision(recipe.train.precision, model.device))
    newest = run.newest_good()
    if newest is not None:
        trainer.resume(newest)
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
