"""docs/cli.md from the verbs' own docstrings: `python -m interlace.cli.reference > docs/cli.md`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from interlace.cli import convert_checkpoint, data, doctor, generate, quickstart, train
from interlace.cli import inspect as inspect_verb

VERBS: dict[str, Callable[..., Any]] = {
    "quickstart": quickstart.quickstart,
    "train": train.train,
    "data prepare": data.prepare,
    "data inspect": data.inspect,
    "generate": generate.generate,
    "inspect": inspect_verb.inspect,
    "convert-checkpoint": convert_checkpoint.convert_checkpoint,
    "doctor": doctor.doctor,
}


def reference() -> str:
    """The whole page, as Markdown."""
    head = (
        "# The command line\n\nMade from the verbs' own help by `python -m interlace.cli.reference`. "
        "Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.\n"
    )
    return head + "".join(f"\n## interlace {name}\n\n{section(verb)}" for name, verb in VERBS.items())


def section(verb: Callable[..., Any]) -> str:
    """A verb's description, and a table of its arguments with their defaults."""
    text, _, arguments = inspect.cleandoc(verb.__doc__ or "").partition("Parameters\n----------\n")
    lines = arguments.splitlines()
    helps = {a.partition(":")[0]: b.strip() for a, b in zip(lines[::2], lines[1::2], strict=True)}
    rows = []
    for name, parameter in inspect.signature(verb).parameters.items():
        keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        shown = f"--{name.replace('_', '-')}" if keyword else name.upper()
        default = "" if parameter.default is inspect.Parameter.empty else f"`{parameter.default}`"
        rows.append(f"| `{shown}` | {default} | {helps[name]} |")
    table = "\n".join(["| argument | default | |", "|---|---|---|", *rows])
    return f"{text.rstrip()}\n\n{table}\n"


if __name__ == "__main__":
    print(reference(), end="")
