"""docs/steps.md from the tables of a distillation recipe: `python docs/make_steps.py > docs/steps.md`.

A test holds the page to it."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from textwrap import dedent

from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parent))
from make_layers import default, meanings, spelled

from interlace.distill.recipe import Output, RunSettings
from interlace.distill.steps.ask import Asking
from interlace.distill.steps.base import Step
from interlace.distill.steps.grade import Criterion
from interlace.distill.steps.registry import KINDS
from interlace.distill.teachers.teacher import Teacher

HEAD = """# The tables of a distillation recipe

Made by `python docs/make_steps.py > docs/steps.md`. [distill.md](distill.md) is the guide.

A recipe is a TOML file with `[run]`, `[teachers.NAME]`, `[[steps]]` and `[output]`. Paths in it start from its folder.
Where a list is asked for, one text may stand alone. A step takes the rows of the step before it, or of those that
`from` names. Templates are Jinja over a row's columns, such as `{{ question }}`; they are rendered in a sandbox, in a
process of its own, within two seconds and 256 MiB. A column that is null is written as nothing.
"""


def text(schema: type[BaseModel]) -> str:
    """The docstring up to the attributes, its example as a block of TOML."""
    body = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:")[0].rstrip()
    body = re.sub(r'^`kind = "\w+"`: (\w)', lambda m: m[1].upper(), body)
    lines = r"(?:^    .*\n?(?:\n(?=    ))*)+"
    return re.sub(lines, lambda m: f"```toml\n{dedent(m[0]).strip()}\n```\n", body, flags=re.MULTILINE).strip()


def value(annotation: object) -> str:
    """A type as a TOML writer thinks of it; what has no short name is a table or a list."""
    found = spelled(annotation)
    found = re.sub(r"(dict|list)\[[^|]*\]", lambda m: "table" if m[1] == "dict" else "list", found)
    return " or ".join(dict.fromkeys(re.split(r" or ", found)))


def rows(schema: type[BaseModel], skip: set[str]) -> list[str]:
    """A table of a schema's keys, by the names they have in TOML."""
    said = meanings(schema)
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in schema.model_fields.items():
        if name in skip:
            continue
        key = field.alias or name
        about = said.get(name) or said.get(key) or ""
        about = about.replace("`from` in TOML: ", "").replace("|", "\\|")
        standard = default(field) if not isinstance(field.default, tuple) else ", ".join(map(str, field.default))
        standard = "" if standard in ("{}", "PydanticUndefined") else standard
        lines.append(f"| `{key}` | {value(field.annotation)} | {standard} | {about} |")
    return lines


def page() -> str:
    """The whole of docs/steps.md."""
    shared, asking = set(Step.model_fields), set(Asking.model_fields)
    parts = [HEAD, "## `[run]`\n", *rows(RunSettings, set()), "\n## `[teachers.NAME]`\n", *rows(Teacher, set())]
    parts += ["\n## `[output]`\n", *rows(Output, set())]
    parts += ["\n## In every `[[steps]]`\n", *rows(Step, set())]
    parts += ["\n## In every step that asks a teacher\n", *rows(Asking, shared)]
    for kind, schema in KINDS.items():
        skip = asking if issubclass(schema, Asking) else shared
        note = "\nIt asks a teacher: the keys above hold too.\n" if issubclass(schema, Asking) else ""
        own = {n for n, f in schema.model_fields.items() if n in skip and changed(schema, n)}
        parts += [f"\n## `{kind}`\n", text(schema), note, *rows(schema, skip - own)]
    parts += ["\n## A criterion of a rubric\n", *rows(Criterion, set())]
    return "\n".join(parts) + "\n"


def changed(schema: type[BaseModel], name: str) -> bool:
    """Whether a kind has another default than other steps that ask."""
    base = Asking.model_fields.get(name)
    return base is not None and schema.model_fields[name].default != base.default


if __name__ == "__main__":
    print(page(), end="")
