"""The tasks by name."""

from __future__ import annotations

from interlace.base.errors import ConfigError, nearest
from interlace.study.tasks.copying import Copy, SelectiveCopy
from interlace.study.tasks.formal import Formula, ModularArithmetic, Parity
from interlace.study.tasks.groups import WordProblem
from interlace.study.tasks.mad import Compression, FuzzyRecall, MadRecall, MadSelectiveCopy, Memorization
from interlace.study.tasks.objects import Recall, StateRecall, Swaps
from interlace.study.tasks.programs import Programs
from interlace.study.tasks.recall import MultiQueryRecall, Needle
from interlace.study.tasks.task import Task

TASKS: dict[str, Task] = {
    "parity": Parity(),
    "arithmetic": ModularArithmetic(),
    "arithmetic_brackets": ModularArithmetic(brackets=True),
    "z60": WordProblem("Z60"),
    "s3": WordProblem("S3"),
    "a5": WordProblem("A5"),
    "s5": WordProblem("S5"),
    "s5_swaps": WordProblem("S5", swaps_only=True),
    "swaps": Swaps(),
    "swaps_long": Swaps(trained=(8, 16, 32, 64), tested=(8, 16, 32, 64, 128)),
    "recall": Recall(),
    "recall_long": Recall(longest=128, trained=(128,), tested=(16, 32, 64, 128)),
    "state_recall": StateRecall(),
    "state_recall_long": StateRecall(longest=128, trained=(8, 16, 32, 64), tested=(8, 16, 32, 64, 128)),
    "state_recall_16": StateRecall(symbols=16, longest=32, trained=(8, 16), tested=(8, 16, 32)),
    "mqar": MultiQueryRecall(),
    "mad_recall": MadRecall(),
    "mad_fuzzy": FuzzyRecall(),
    "mad_noisy": MadRecall(noise=0.2, noise_vocabulary=16),
    "mad_selective_copy": MadSelectiveCopy(),
    "mad_compression": Compression(),
    "mad_memorization": Memorization(),
    "copy": Copy(),
    "selective_copy": SelectiveCopy(),
    "formula": Formula(),
    "programs": Programs(),
    "needle": Needle(),
    "needles": Needle(needles=4),
}


def task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in TASKS:
        raise ConfigError(f"tasks: {name!r} is not a task; {nearest(name, list(TASKS))}")
    return TASKS[name]
