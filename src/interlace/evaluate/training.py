"""A whole training run: the loop of `train`, its held-out scores, samples of what the model writes, and a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from interlace.base.errors import ConfigError, InterlaceError, RunError
from interlace.base.files import write_file
from interlace.checkpoint.load import load
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.evaluate.gates import gate_statistics
from interlace.evaluate.pairs import HeldOutPairs
from interlace.evaluate.watching import Watching, read_tasks
from interlace.generation.text import generate
from interlace.model.model import HybridLM
from interlace.runs.folder import CONFIG, differences
from interlace.runs.progress import Progress, Watch, silent
from interlace.runs.training import TrainingRun
from interlace.train.corpus import again, check_inputs
from interlace.train.loop import SCORING, SCORING_AVERAGE, Evaluate, train
from interlace.train.recipe import FIXED, DataSettings, Recipe, filled
from interlace.train.reference import read_reference
from interlace.train.report import SAMPLES, write_report
from interlace.train.workers import Alone

PROMPT_TOKENS, SAMPLE_TOKENS = 12, 64


def train_in_stages(
    recipe: Recipe,
    out: Path,
    watch: Watch = silent,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
    workers: Alone | None = None,
    changes: Collection[str] = (),
) -> TrainingRun:
    """Train all stages of a recipe, or go on with them, each in a run folder of its own below `out`; return the last.

    A recipe without stages is one, in `out` itself. Args and Raises as for `train_and_report`.
    """
    workers = workers or Alone()
    if not recipe.stage:
        return train_and_report(recipe, out, watch, device, say, workers, changes)
    stages, found = recipe.stages(out), None
    workers.first_does(lambda: check_stages(stages, out, changes))
    for name, stage in stages:
        if workers.first:
            say(f"stage {name}")
        found = train_and_report(stage, out / name, watch, device, say, workers, changes)
    assert found is not None
    return found


def check_stages(stages: Sequence[tuple[str, Recipe]], out: Path, changes: Collection[str] = ()) -> None:
    """Check whether all stages could begin or go on, before any does.

    Raises:
        RunError: `out` is a run itself, or a stage was changed whose end a later one has begun with.
        DataError, ConfigError: as `check_inputs`.
    """
    if (out / CONFIG).is_file():
        raise RunError(f"{out}: is the run of one recipe, not a folder for stages; name another --out")
    runs = [TrainingRun(out / name, filled, FIXED) for name, _ in stages]
    for number, ((_, stage), run) in enumerate(zip(stages, runs, strict=True)):
        known = run.belongs_to(stage.to_dict(), changes)
        if known and run.has_begun():
            later = next((other.path.name for other in runs[number + 1 :] if other.has_begun()), None)
            if later and list(differences(filled(run.config()), stage.to_dict())):
                raise RunError(
                    f"{run.path}: cannot be changed, as stage {later} began from its end; name another --out"
                )
            continue
        check_inputs(stage, later=number > 0)


def train_and_report(
    recipe: Recipe,
    out: Path,
    watch: Watch = silent,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
    workers: Alone | None = None,
    changes: Collection[str] = (),
) -> TrainingRun:
    """Train, or resume training, in the run folder `out`; its report.html is written however the run ends.

    Args:
        watch: as for `train`.
        say: called with a sentence on why the page could not be written.
        workers, changes: as for `train`.

    Raises:
        As `train`. KeyboardInterrupt names the checkpoint that the same command resumes from.
    """
    workers = workers or Alone()
    begun, watching, step = False, None, None  # type: bool, Watching | None, int | None
    check_watched(recipe, workers.count)

    def told(now: Progress) -> None:
        nonlocal begun, step
        if now.label in (SCORING, SCORING_AVERAGE):
            step = int(now.done) if now.label == SCORING else None
            return
        begun = begun or now.label == "starting"
        if now.label == "starting" and watching:
            watching.forget_after(int(now.done))
        watch(now)

    def evaluate(corpus: Corpus) -> Evaluate:
        nonlocal watching
        if recipe.train.tasks or recipe.train.prompts:
            watching = Watching(out, recipe.train, device, watch)
        held: HeldOut | HeldOutPairs
        if recipe.objective.of_pairs:
            documents = len(corpus.splits["held_out"].borders) - 1
            known = read_reference(out, "held_out", documents) if recipe.objective.has_reference else None
            precision = TrainingRun(out).tables().get("machine", {}).get("precision", "float32")
            held = HeldOutPairs(corpus, recipe, known, precision)
        else:
            held = HeldOut(corpus, recipe.data.length, recipe.train.evaluation_tokens)

        def score(model: HybridLM) -> dict[str, float]:
            found = held.score(model, workers)
            if step is None:  # the average, of which these are used
                return found
            found |= gate_statistics(model, held.batches[0], workers.heads)
            return found | (watching(model, step) if watching else {})

        return score

    try:
        run = train(recipe, out, evaluate, told, device, workers, changes)
        if workers.first:
            _write_samples(run.path, run.checkpoints()[-1])
    except KeyboardInterrupt:
        kept = TrainingRun(out).checkpoints() if begun else []
        raise KeyboardInterrupt(f"the same command goes on from {kept[-1].name}" if kept else "") from None
    finally:
        if begun:  # not into a folder that was refused
            _write_page(out, say)
    return run


def check_watched(recipe: Recipe, workers: int = 1) -> None:
    """Check the tasks and prompts that a recipe names.

    Raises:
        ConfigError, DataError: a task breaks a rule, or there are several workers, of which none has the whole model.
    """
    read_tasks(recipe.train)
    for key in ("tasks", "prompts"):
        if workers > 1 and getattr(recipe.train, key):
            raise ConfigError(f"train.{key}: are put to a model by one worker alone; leave them out under torchrun")


def _write_page(out: Path, say: Callable[[str], None]) -> None:
    """Write the page of a run, finished or not; an error of the page hides no other error."""
    run = TrainingRun(out)
    if not (run.file.is_file() and run.metrics_file.is_file() and run.metrics_file.stat().st_size):
        return
    try:
        write_report(run)
    except InterlaceError as error:
        say(f"report.html was not written: {error}")


def _write_samples(run: Path, checkpoint: Path) -> None:
    """Write what the model generates after three beginnings of held-out documents, the same each time."""
    if (run / SAMPLES).is_file():
        return
    data = DataSettings.model_validate(TrainingRun(run).config()["data"])
    corpus = again(data, run / "data")
    split, model = corpus.splits["held_out"], load(checkpoint)
    room = min(SAMPLE_TOKENS, (model.config.max_positions or 1 << 20) - PROMPT_TOKENS - 1)
    samples = []
    for start, stop in list(zip(split.borders, split.borders[1:], strict=False))[:3] if room > 0 else ():
        ids = split.read(int(start), min(int(stop), int(start) + PROMPT_TOKENS)).tolist()
        prompt = corpus.tokenizer.decode(ids)
        text = "".join(generate(model, prompt, max_tokens=room, temperature=0.7, seed=1))
        samples.append({"prompt": prompt, "text": text})
    write_file(run / SAMPLES, json.dumps(samples, indent=2) + "\n")
