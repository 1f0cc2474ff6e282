"""docs/cli.md from the verbs' own docstrings: `python -m interlace.cli.reference > docs/cli.md`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from interlace.cli import (
    chat,
    completion,
    convert_checkpoint,
    data,
    distill,
    doctor,
    generate,
    quickstart,
    recipes,
    study,
    study_fit,
    study_ladder,
    train,
)
from interlace.cli import inspect as inspect_verb

VERBS: dict[str, Callable[..., Any]] = {
    "quickstart": quickstart.quickstart,
    "train": train.train,
    "data prepare": data.prepare,
    "data inspect": data.inspect,
    "generate": generate.generate,
    "chat": chat.chat,
    "inspect": inspect_verb.inspect,
    "convert-checkpoint": convert_checkpoint.convert_checkpoint,
    "doctor": doctor.doctor,
    "study tasks": study.tasks,
    "study ladder": study_ladder.ladder,
    "study fit": study_fit.fit,
    "study report": study_fit.report,
    "distill generate": distill.generate,
    "distill status": distill.status,
    "distill export": distill.export,
    "distill report": distill.report,
    "recipes": recipes.recipes,
    "completion": completion.completion,
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
    text, helps = described(verb)
    rows = []
    for name, parameter in inspect.signature(verb).parameters.items():
        group = parameter.default
        if dataclasses.is_dataclass(group):  # arguments that several verbs share
            _, shared = described(type(group))
            rows += [row(f"--{n}", getattr(group, n), shared[n]) for n in shared]
            continue
        keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        rows.append(row(f"--{name}" if keyword else name.upper(), parameter.default, helps[name]))
    table = "\n".join(["| argument | default | |", "|---|---|---|", *rows])
    return f"{text.rstrip()}\n\n{table}\n"


def row(name: str, default: Any, help_: str) -> str:
    """One argument."""
    shown = name.replace("_", "-") if name.startswith("--") else name
    value = "" if default is inspect.Parameter.empty or default == "" else f"`{default}`"
    return f"| `{shown}` | {value} | {help_} |"


def described(thing: Any) -> tuple[str, dict[str, str]]:
    """(description, help by argument) of a docstring."""
    text, _, arguments = inspect.cleandoc(thing.__doc__ or "").partition("Parameters\n----------\n")
    helps: dict[str, str] = {}
    name = ""
    for line in arguments.splitlines():
        if line.startswith(" "):
            helps[name] = f"{helps.get(name, '')} {line.strip()}".strip()
        else:
            name = line.partition(":")[0].strip()
    return text, helps


if __name__ == "__main__":
    print(reference(), end="")
