"""docs/cli.md from the verbs' own docstrings: `python -m interlace.cli.reference > docs/cli.md`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from cyclopts import App

from interlace.cli.main import app


def verbs(group: App = app, before: str = "") -> dict[str, Callable[..., Any]]:
    """The functions of all verbs by name, as the application holds them; each module is imported."""
    found: dict[str, Callable[..., Any]] = {}
    for name in group:
        if name.startswith("-"):
            continue
        one = group[name]
        if one.default_command is not None:
            found[before + name] = one.default_command
        found |= verbs(one, f"{before}{name} ")
    return found


def reference() -> str:
    """The whole page, as Markdown."""
    head = (
        "# The command line\n\nMade from the verbs' own help by `python -m interlace.cli.reference`. "
        "Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.\n"
    )
    return head + "".join(f"\n## interlace {name}\n\n{section(verb)}" for name, verb in verbs().items())


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
