"""docs/tasks.md from the tasks' docstrings: `python docs/make_tasks.py > docs/tasks.md`.

A test holds the page to it."""

from __future__ import annotations

import inspect

import numpy as np

from interlace.study.tasks.registry import TASKS
from interlace.study.tasks.suites import SUITES
from interlace.study.tasks.task import Task

HEAD = """# Formal tasks

Made by `python docs/make_tasks.py > docs/tasks.md`.

`interlace study tasks` trains small models on these and says what each can learn, and carry to lengths it never saw:

```
interlace study tasks --suite quick
interlace study tasks --tasks parity,s3 --models transformer,gated_delta,mamba2,lstm --seeds 5 --out runs/s3
```

A sample is drawn from a seed and a difficulty. Models read its compact form, a token for each word of the task; the
same sample as text is for people, and wherever it is Python it runs. Where a task has enough problems (2^17), one in
eight, by a hash, is kept for testing and never trained on. Every label of a sample counts the same, and every sample
the same.

## Suites

"""


def line(numbers: tuple[int, ...]) -> str:
    """Difficulties as people write them."""
    if len(numbers) > 4:
        step = numbers[1] - numbers[0]
        return f"{numbers[0]} to {numbers[-1]}" + ("" if step == 1 else f" by {step}")
    return ", ".join(map(str, numbers))


def section(names: list[str], task: Task) -> str:
    """One class of tasks: its docstring, and what its instances differ in."""
    doc = inspect.cleandoc(type(task).__doc__ or "")
    parts = [f"## {', '.join(f'`{n}`' for n in names)}\n\n{doc}\n"]
    for name in names:
        one = TASKS[name]
        parts.append(
            f"`{name}`: {len(one.words)} words; trained at {line(one.trained)}; tested at {line(one.tested)}; "
            f"scored by {one.scored_by}; chance {one.chance(one.tested[0]):.3g}. A sample:\n"
        )
        sample = one.sample(np.random.default_rng(0), smallest(name), test=False)
        parts.append("```\n" + one.text(sample)[:600] + "\n```\n")
    return "\n".join(parts)


SHORT = {
    "mqar": 4,
    "mad_recall": 16,
    "mad_noisy": 24,
    "mad_fuzzy": 32,
    "mad_selective_copy": 64,
    "mad_memorization": 256,
}
SHORT |= {"arithmetic": 9, "arithmetic_brackets": 14, "formula": 11, "state_recall": 8, "state_recall_16": 8}
SHORT |= {"selective_copy": 40, "needle": 20, "needles": 20}


def smallest(name: str) -> int:
    """A difficulty whose samples fit on a page."""
    return SHORT.get(name, 6)


def page() -> str:
    """The whole of docs/tasks.md."""
    parts = [HEAD + "\n".join(f"- `{name}`: {s.about}" for name, s in SUITES.items()) + "\n"]
    by_class: dict[type[Task], list[str]] = {}
    for name, task in TASKS.items():
        by_class.setdefault(type(task), []).append(name)
    parts += [section(names, TASKS[names[0]]) for names in by_class.values()]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
