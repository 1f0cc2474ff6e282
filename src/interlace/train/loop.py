"""The loop of `interlace train`: steps, held-out scores and checkpoints, in a run folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from interlace.base.errors import ConfigError, DataError, Diverged
from interlace.base.files import disk_errors, user_path
from interlace.checkpoint.fingerprint import fingerprint, weights_hash
from interlace.checkpoint.folder import resolve
from interlace.checkpoint.load import load
from interlace.checkpoint.tensors import write
from interlace.data.batches import Batch, Pairs
from interlace.data.tokens import Corpus
from interlace.model.device import facts, resolve_device
from interlace.model.model import HybridLM
from interlace.model.precision import choose_precision
from interlace.runs.background import Background
from interlace.runs.checkpoints import keep
from interlace.runs.lock import hold_folder
from interlace.runs.progress import Progress, Watch, silent
from interlace.runs.training import TrainingRun
from interlace.train.cache.teacher import cached_teacher
from interlace.train.corpus import again, batches_of, check_fit, check_inputs, check_mixture, open_corpus, steps_of
from interlace.train.gauge import Gauge
from interlace.train.memory import Footprint, explained, footprint
from interlace.train.objectives.base import Objective
from interlace.train.objectives.distill import Distill, projection_of
from interlace.train.objectives.next_token import NextToken
from interlace.train.objectives.preference import Preference
from interlace.train.objectives.spans import AcrossTokenizers, Aligner
from interlace.train.recipe import FIXED, Recipe, filled, moved
from interlace.train.reference import prepare_reference, read_reference
from interlace.train.saved import with_weights
from interlace.train.schedule import horizon_steps
from interlace.train.steps import take_steps
from interlace.train.teacher import live_teacher
from interlace.train.trained import set_trained
from interlace.train.trainer import StepResult, Trainer
from interlace.train.workers import Alone

LOG = logging.getLogger("interlace")
PARENT = "INTERLACE_PARENT"  # set for the processes of a study, whose orphans may still hold a folder for a moment
ORPHAN_SECONDS = 5.0
SCORING, SCORING_AVERAGE = "scoring", "scoring the average"  # what is told before a model is scored
STOPPED = "stopped"  # folder of the batch that ended a run
Evaluate = Callable[[HybridLM], dict[str, float]]


def due(step: int, steps: int, times: int) -> bool:
    """Return whether work done `times` times over the run, the end included, is due after `step` steps."""
    return step * times // steps > (step - 1) * times // steps


def build_model(recipe: Recipe, corpus: Corpus, device: str, precision: str = "float32") -> HybridLM:
    """Fresh weights from the recipe's seed, or those of the checkpoint it starts from, with the corpus' tokenizer.

    precision: of the training. Weights that stay as they are, beside adapters, are stored in it; others in float32.

    Raises:
        ConfigError: the checkpoint's config or tokenizer is not the recipe's.
    """
    model = _started(recipe, corpus, device, precision) if recipe.train.start else _fresh(recipe, corpus, device)
    set_trained(model, recipe.train)
    if recipe.train.lora is not None:
        folder = resolve(recipe.train.start)
        local = user_path(recipe.train.start).exists()
        model.base, model.base_hash = str(folder.resolve()) if local else recipe.train.start, weights_hash(folder)
        keep(folder)
    return model


def _fresh(recipe: Recipe, corpus: Corpus, device: str) -> HybridLM:
    tokens = recipe.model.tokens
    if not tokens.eos and corpus.tokenizer.eos is not None:
        tokens = tokens.model_copy(update={"eos": (corpus.tokenizer.eos,)})
    torch.manual_seed(recipe.train.seed)
    model = HybridLM(recipe.model.model_copy(update={"tokens": tokens}))  # drawn on the CPU: the same for any device
    model.tokenizer = corpus.tokenizer
    return model.to(resolve_device(device))


def _started(recipe: Recipe, corpus: Corpus, device: str, precision: str) -> HybridLM:
    start = recipe.train.start
    dtype = torch.float32 if recipe.train.lora is None else getattr(torch, precision)
    model = load(start, dtype=dtype, device=device)
    if model.rounding is not None:
        raise ConfigError(
            f"train.start: the weights of {start} were rounded to few bits for decoding; name the checkpoint that they "
            "were rounded from"
        )
    if wrong := moved(model.config, recipe.model):
        raise ConfigError(
            f"model: is not what {start} holds ({', '.join(wrong)}); leave [model] out where train.start is given"
        )
    if model.config.replace(tokens={}) != recipe.model.replace(tokens={}):  # attention stands elsewhere
        config = recipe.model.model_copy(update={"tokens": model.config.tokens})
        source, model = model.source, with_weights(model, dict(model.named_parameters()), config)
        model.source = source
    if model.tokenizer is not None and model.tokenizer.hash() != corpus.tokenizer.hash():
        raise ConfigError(f"data.tokenizer: is not the tokenizer of {start}; leave it out where train.start is given")
    model.tokenizer = corpus.tokenizer
    return model


def train(
    recipe: Recipe,
    out: Path,
    evaluate: Callable[[Corpus], Evaluate],
    watch: Watch = silent,
    device: str = "cpu",
    workers: Alone | None = None,
    changes: Collection[str] = (),
) -> TrainingRun:
    """Train, or go on training, in the run folder `out`; return it when the last step is done.

    Args:
        evaluate: of the corpus, returns what scores a model on held-out text.
        watch: told how the text is prepared, then "starting" with the step to start from and the steps in all, then
            "training" after each step, with the row that was logged; of the first worker alone. "scoring" before a
            score, and "scoring the average", to all workers.
        workers: with whom the model is trained; each of them calls this.
        changes: keys of the recipe that may differ from those that the run was started with.

    Raises:
        RunError: `out` belongs to a different run, another process works in it, or what it began with was changed.
        ConfigError, DataError: the recipe and the data do not fit; a run that could not begin leaves nothing behind.
        Failure: training diverged, the disk refused, or the device has too little memory.
    """
    resolve_device(device)
    workers = workers or Alone()
    run = TrainingRun(out, filled, FIXED)
    opened = ExitStack()
    with opened:
        workers.first_does(lambda: _open(recipe, run, device, opened, changes))
        workers.check_common(run.path)
        gauge: Gauge | None = None

        def predict() -> Footprint:
            known = None if gauge is None else gauge.footprint
            return known or footprint(recipe.model, recipe.data.length, torch.device("meta"), settings=recipe.train)

        with explained(recipe, predict):
            try:
                gauge = Gauge.of(recipe, device, workers.count)
                trainer, corpus = _trainer(recipe, run, watch, device, workers)
                score = evaluate(corpus)
                workers.first_does(lambda: run.take_up(recipe.to_dict(), changes))  # what was changed can be used
            except BaseException:
                if workers.first:
                    run.withdraw()
                raise
            if gauge is not None and workers.first:
                run.remember(**gauge.facts())
            _steps(recipe, run, trainer, corpus, score, watch, gauge)
        return run


def _open(recipe: Recipe, run: TrainingRun, device: str, opened: ExitStack, changes: Collection[str]) -> None:
    """Check whether a run can begin or go on, hold its folder, and record what runs."""
    begun = run.belongs_to(recipe.to_dict(), changes) and run.has_begun()
    if not begun:
        check_inputs(recipe)
    opened.enter_context(hold_folder(run.path, wait_seconds=ORPHAN_SECONDS if os.environ.get(PARENT) else 0.0))
    if not begun:
        run.take_up(recipe.to_dict())
    run.remember(machine=facts(device))


def _trainer(recipe: Recipe, run: TrainingRun, watch: Watch, device: str, workers: Alone) -> tuple[Trainer, Corpus]:
    """Return the trainer that takes the next step of a run, after all that it reads was checked."""
    workers.begin(recipe)
    newest = workers.first_does(run.newest_good)
    workers.first_does(lambda: _checked(recipe, run, watch))
    corpus = again(recipe.data, run.path / "data")
    precision = choose_precision(recipe.train.precision, resolve_device(device))
    workers.agree("text", corpus.fingerprint())
    if recipe.train.start:
        workers.agree("checkpoint to start from", fingerprint(recipe.train.start))
    workers.first_does(lambda: run.remember(precision=precision))
    if recipe.objective.has_reference:
        workers.first_does(lambda: prepare_reference(run, recipe, corpus, precision, device, watch))
    alone = workers.count == 1
    model = build_model(recipe, corpus, device if alone else "cpu", precision if alone else "float32")
    workers.prepare(model)
    objective = objective_of(recipe, run, corpus, precision, str(model.device), alone)
    trainer = Trainer.of(model, recipe.train, steps_of(recipe), precision, workers, objective)
    if newest is not None:
        trainer.resume(newest)
    return trainer, corpus


def objective_of(
    recipe: Recipe, run: TrainingRun, corpus: Corpus, precision: str, device: str, alone: bool = True
) -> Callable[[NextToken], Objective]:
    """Return what makes a recipe's objective of that of next tokens; its reference is read from the run folder.

    precision, device: of a teacher.
    alone: whether one worker trains. Several read a prompt before each answer: FSDP2 sums the gradients of one pass.
    """
    settings = recipe.objective.model_copy(update={"share_prompt": recipe.objective.share_prompt and alone})
    if settings.kind == "distill":
        if settings.cache:
            teacher: Any = cached_teacher(recipe, run, corpus, precision, device)
        else:
            teacher = live_teacher(recipe, run, corpus, precision, device)
        if settings.align == "text":
            other = Aligner(corpus.tokenizer, teacher.model.tokenizer)
            weights = settings.soft, settings.temperature
            return lambda objective: AcrossTokenizers(
                teacher.model, other, *weights, objective.precision, objective.unevenness
            )
        how = settings.soft, settings.temperature, corpus.tokenizer.vocabulary
        projection = None
        if settings.hidden:
            widths = recipe.model.width, teacher.width
            projection = projection_of(*widths, recipe.train.seed, torch.device(device))
        more = settings.hidden, projection
        return lambda objective: Distill(teacher, *how, objective.precision, objective.unevenness, *more)
    if not settings.of_pairs:
        return lambda objective: objective
    documents = len(corpus.splits["train"].borders) - 1
    known = read_reference(run.path, "train", documents) if settings.has_reference else None
    return lambda objective: Preference(settings, known, objective.precision, objective.unevenness)


def _checked(recipe: Recipe, run: TrainingRun, watch: Watch) -> None:
    """Prepare the text where that is due, and compare all that a run reads with what it began with."""
    corpus = open_corpus(recipe.data, run.path / "data", watch, begun=run.has_begun())
    check_fit(recipe, corpus)
    read = batches_of(recipe.data, corpus, recipe.train.seed)
    check_mixture(read, steps_of(recipe))
    if isinstance(read, Pairs) and read.left_out:
        whole = read.left_out + len(read.documents)
        said = f"data.length: {read.left_out:,} of {whole:,} pairs have a prompt with an answer of more than "
        said += f"{recipe.data.length:,} tokens"
        if recipe.data.long == "refuse":
            raise DataError(f"{said}; raise data.length, or leave data.long out")
        LOG.warning("%s, and are left out", said)
    run.check("data", corpus.fingerprint(), f"{corpus.folder}: the data")
    if recipe.train.start:
        run.check("start", fingerprint(recipe.train.start), f"train.start: {recipe.train.start}")


def _steps(
    recipe: Recipe,
    run: TrainingRun,
    trainer: Trainer,
    corpus: Corpus,
    evaluate: Evaluate,
    watch: Watch,
    gauge: Gauge | None = None,
) -> None:
    """Take the steps that are left."""
    steps, plan, workers = trainer.steps, recipe.train, trainer.workers
    batches = batches_of(recipe.data, corpus, plan.seed)
    if workers.first:
        run.forget_after(trainer.done)
        watch(Progress("starting", trainer.done, steps, detail={"run": run.path}))
    ends = horizon_steps(steps, plan.horizons)
    started = time.perf_counter()  # of what the next line counts
    background = Background()
    waiting: list[tuple[int, StepResult, float]] = []  # steps that a GPU may still work on: (number, results, seconds)

    def spent() -> float:
        nonlocal started
        before, started = started, time.perf_counter()
        return started - before

    def after(_: Trainer, step: StepResult) -> None:
        done = trainer.done
        for one in waiting:  # the step before: its results were looked at by now
            log(*one)
        waiting.clear()
        checkpoint, score = due(done, steps, plan.checkpoints), done in ends or due(done, steps, plan.evaluations)
        if step.waits and not (checkpoint or score):
            waiting.append((done, step, spent()))
            return
        trainer.settle()
        background.check()
        more: dict[str, Any] = {"horizon": done / steps} if done in ends else {}
        if score:
            more |= scores()
        log(done, step, spent(), **more)
        if checkpoint:
            workers.write(run, trainer.saved(), done, background, done == steps)

    def scores() -> dict[str, float]:
        watch(Progress(SCORING, trainer.done, steps))
        found = evaluate(trainer.model)
        workers.reshard(trainer.model)
        if trainer.average is not None:
            with trainer.average.in_place():
                watch(Progress(SCORING_AVERAGE, trainer.done, steps))
                averaged = evaluate(trainer.model)
                found |= {f"average_{name}": value for name, value in averaged.items() if name.startswith("held_out")}
                workers.reshard(trainer.model)
        return found

    def log(done: int, step: StepResult, seconds: float, **more: Any) -> None:
        if not workers.first:
            return
        row: dict[str, Any] = {
            "step": done,
            "tokens": done * batches.tokens,
            **_numbers(step),
            "learning_rate": step.learning_rate,
            "tokens_per_second": batches.tokens / step.seconds,
        }
        if step.update_ratio is not None:
            row["update_ratio"] = step.update_ratio
        if step.busiest is not None:
            row["busiest_expert"] = step.busiest
        if gauge is not None:
            row |= gauge.row(row["tokens_per_second"])
        row |= {**more, "seconds": seconds}
        run.log(**row)
        left = (steps - done) * batches.tokens / row["tokens_per_second"]
        watch(Progress("training", done, steps, left, row))

    def diverged(_: Trainer, error: Diverged) -> None:
        for one in waiting:
            if one[0] <= trainer.done:  # not the last bad step, which has no line of its own
                log(*one)
        waiting.clear()
        if workers.first:
            keep_batch(run.path, trainer.done + 1, batches.batch(trainer.done))
            run.log(step=trainer.done, tokens=trainer.done * batches.tokens, diverged=str(error))

    try:
        take_steps([trainer], batches.batch, after, diverged=diverged)
    finally:
        background.wait()


def _numbers(step: StepResult) -> dict[str, Any]:
    """Return loss and gradient norm; where they are bad, in words, since JSON has no infinity."""
    if step.bad:
        return {"skipped": step.skipped}
    return {"loss": step.loss, "grad_norm": step.grad_norm, **step.more}


def keep_batch(folder: Path, step: int, batch: Batch) -> Path:
    """Write the batch of a step, counted from 1, that ended a run: STOPPED/step-N.safetensors; return the file."""
    file = folder / STOPPED / f"step-{step}.safetensors"
    with disk_errors(file):
        file.parent.mkdir(exist_ok=True)
    tensors = {"tokens": batch.tokens, "targets": batch.targets, "offsets": batch.segments.offsets}
    write(file, [(name, tuple(x.shape), x) for name, x in tensors.items()])
    return file
