"""Values on the command line: a fraction is no whole number, and nothing is no path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def _whole(_: Any, tokens: Sequence[Any]) -> int:
    text = tokens[0].value.replace("_", "")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be a whole number, got {tokens[0].value!r}") from None


def _named(_: Any, tokens: Sequence[Any]) -> str:
    if not tokens[0].value.strip():  # Path("") would be the current folder
        raise ValueError("must not be empty; is a variable of the shell not set?")
    return str(tokens[0].value)


def _place(_: Any, tokens: Sequence[Any]) -> Path:
    return Path(_named(_, tokens))


Whole = Annotated[int, Parameter(converter=_whole)]
Place = Annotated[Path, Parameter(converter=_place)]
Named = Annotated[str, Parameter(converter=_named)]  # a checkpoint: a folder, or a hub id
