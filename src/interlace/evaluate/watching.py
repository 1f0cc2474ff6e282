"""What a run of training looks at on its way: tasks on a few items, beside the model it began from, and samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from interlace.base.errors import ConfigError
from interlace.base.files import disk_errors, user_path, write_file
from interlace.checkpoint.load import load
from interlace.evaluate.ask import Row
from interlace.evaluate.run import Work, ask, kept_rows
from interlace.evaluate.task import Task, read_task
from interlace.evaluate.write import write_answers
from interlace.generation.conversation import end_tokens
from interlace.generation.pack import pack_for_decoding
from interlace.generation.sampling import Sampling
from interlace.model.model import HybridLM
from interlace.runs.progress import Watch, silent
from interlace.runs.training import TrainingRun
from interlace.train.recipe import TrainSettings
from interlace.train.report import WRITTEN

FOLDER, START = "evaluations", "start"
SEED = 1  # of samples, so that those of all steps are drawn alike
TEMPERATURE = 0.7


def read_tasks(settings: TrainSettings) -> tuple[Task, ...]:
    """Return the tasks that a recipe names.

    Raises:
        ConfigError, DataError: a file of them breaks a rule; two have one name.
    """
    found = tuple(read_task(user_path(path, ConfigError), settings.task_items) for path in settings.tasks)
    names = [task.name for task in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"train.tasks: two tasks are called '{twice}'; set name in one of their files")
    return found


class Watching:
    """Asks tasks and writes samples at each evaluation of a run."""

    def __init__(self, run: Path, settings: TrainSettings, device: str = "cpu", watch: Watch = silent):
        """Ask the model that the run starts from, where there is one and it was not asked yet."""
        self.run, self.settings, self.tasks = run, settings, read_tasks(settings)
        self.work = Work(self.tasks, None, SEED)
        self._start: dict[str, list[Row]] = {}
        for task in self.tasks:
            TrainingRun(run).check(f"task {task.name}", task.known, f"train.tasks: {task.name}")
        if not (self.tasks and settings.start):
            return
        model: HybridLM | None = None
        for task in self.tasks:
            file = self._file(START, task.name)
            rows = list(kept_rows(file))
            if len(rows) < len(task.items):
                model = model or pack_for_decoding(load(settings.start, device=device))
                rows = ask(self.work, task.name, model, file, watch, f"{task.name} of {settings.start}")
            self._start[task.name] = rows

    def _file(self, step: str, task: str) -> Path:
        return self.run / FOLDER / step / f"{task}.jsonl"

    def forget_after(self, step: int) -> None:
        """Drop what was found at steps that a resumed run does again."""
        for folder in (self.run / FOLDER).glob("step-*"):
            if (number := folder.name.removeprefix("step-")).isdigit() and int(number) > step:
                shutil.rmtree(folder)
        file = self.run / WRITTEN
        if file.is_file():
            lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            write_file(file, "".join(line for line in lines if json.loads(line)["step"] <= step))

    def __call__(self, model: HybridLM, step: int) -> dict[str, float]:
        """Return the scores of tasks, and on how many items the model is better and worse than the one at the start."""
        training, found = model.training, dict[str, float]()
        model.eval()
        try:
            for task in self.tasks:
                rows = ask(self.work, task.name, model, self._file(f"step-{step}", task.name))
                found[f"tasks.{task.name}"] = sum(row["score"] for row in rows) / len(rows)
                if before := self._start.get(task.name):
                    pairs = [(a["score"], b["score"]) for a, b in zip(before, rows, strict=True)]
                    found[f"tasks.{task.name}_wins"] = sum(b > a for a, b in pairs)
                    found[f"tasks.{task.name}_losses"] = sum(b < a for a, b in pairs)
            if self.settings.prompts:
                self._write(model, step)
        finally:
            model.train(training)
        return found

    def _write(self, model: HybridLM, step: int) -> None:
        """Append what the model writes after each prompt to the run's samples."""
        prompts = self.settings.prompts
        ids, ends = prompt_ids(model, prompts)
        room = [(model.config.max_positions or 1 << 30) - len(one) for one in ids]
        most = [max(1, min(self.settings.prompt_tokens, n)) for n in room]
        seeds, stops = [SEED] * len(ids), [()] * len(ids)
        answers = write_answers(model, ids, most, Sampling(temperature=TEMPERATURE), seeds, stops, ends)
        rows = [{"step": step, "prompt": p, "text": a.text} for p, a in zip(prompts, answers, strict=True)]
        with disk_errors(self.run / WRITTEN), open(self.run / WRITTEN, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def prompt_ids(model: HybridLM, prompts: Sequence[str]) -> tuple[list[list[int]], tuple[int, ...]]:
    """Return the ids of prompts, and what ends their answers: as a user's turns where the tokenizer has a template."""
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        return [tokenizer.encode_text(prompt) for prompt in prompts], ()
    chat = tokenizer.chat()
    try:
        texts = [chat.render([{"role": "user", "content": prompt}], True) for prompt in prompts]
        return [tokenizer.encode(text) for text in texts], end_tokens(tokenizer, chat)
    finally:
        chat.close()
