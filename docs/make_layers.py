"""docs/layers.md from the layers' configs: `python docs/make_layers.py > docs/layers.md`.

A test holds the page to it."""

from __future__ import annotations

import inspect
import re
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from interlace.layers.base import FeedForwardConfig, MixerConfig
from interlace.layers.registry import KINDS
from interlace.layers.rope import RopeConfig
from interlace.model.config import ModelConfig

HEAD = """# Layers

Made by `python docs/make_layers.py > docs/layers.md`.

The tables of a recipe's `[model]`. A pattern names tables; a table's name is its kind, or it says its kind by `type`:
one model may hold two sorts of the same kind.

```toml
[model]
width = 256
depth = 8
vocabulary = 8192
pattern = ["kimi_delta", "kimi_delta", "kimi_delta", "latent_attention"]   # repeated over the depth

[model.kimi_delta]
heads = 4
key_dim = 64
value_dim = 64
mlp = "moe"              # the feed-forward layer after it: the table `mlp` unless said otherwise, or false for none

[model.latent_attention]
heads = 4
latent = 64
key_dim = 48
shared_dim = 16
value_dim = 64

[model.mlp]
width = 704

[model.moe]
experts = 8
chosen = 2
width = 256
```

A feed-forward kind may also stand in the pattern by itself. `interlace train recipe.toml --dry-run` prints what the
model costs.
"""


def meanings(schema: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a config and of its bases say about each attribute."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        doc = cls.__dict__.get("__doc__")
        _, _, attributes = inspect.cleandoc(doc or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes.rstrip()):
            names, colon, text = entry.strip().partition(":")
            if colon:
                found |= dict.fromkeys((n.strip() for n in names.split(",")), " ".join(text.split()))
    return found


def spelled(annotation: Any) -> str:
    """A type as a TOML writer thinks of it."""
    if get_origin(annotation) is Annotated:
        return spelled(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        inner = get_args(annotation)[1]
        return "tables by name" if isinstance(inner, type) and issubclass(inner, BaseModel) else "table"
    if get_origin(annotation) is Literal:
        return " or ".join(f'"{word}"' for word in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(spelled(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) in (tuple, list):
        return "list"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    words = {bool: "true or false", int: "integer", float: "number", str: "text"}
    return words.get(annotation) or str(annotation)


def default(field: FieldInfo) -> str:
    """What holds where a recipe is silent."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if value is None or isinstance(value, BaseModel):
        return ""
    return {True: "true", False: "false"}.get(value, f"{value}") if isinstance(value, bool) else f"{value}"


def rows(schema: type[BaseModel], skip: set[str]) -> list[str]:
    """A table of a config's keys."""
    said = meanings(schema)
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in schema.model_fields.items():
        if name not in skip:
            lines.append(f"| `{name}` | {spelled(field.annotation)} | {default(field)} | {said.get(name, '')} |")
    return lines


def summary(schema: type[BaseModel]) -> str:
    """The docstring up to the attributes."""
    return " ".join(inspect.cleandoc(schema.__doc__ or "").partition("Attributes:")[0].split())


def page() -> str:
    """The whole of docs/layers.md."""
    shared = set(MixerConfig.model_fields)
    parts = [HEAD, "## `[model]`\n", *rows(ModelConfig, {"layers", "tokens"})]
    parts += ["\n## In every layer's table (`mlp` in mixers only)\n", *rows(MixerConfig, set())]
    for kind, schema in KINDS.items():
        sort = "feed-forward" if issubclass(schema, FeedForwardConfig) else "mixer"
        parts += [f"\n## `{kind}` ({sort})\n", summary(schema) + "\n", *rows(schema, shared)]
    parts += ["\n## `rope`\n", summary(RopeConfig) + "\n", *rows(RopeConfig, set())]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
