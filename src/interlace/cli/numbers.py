"""Whole numbers on the command line: a fraction is refused, and not rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter


def _whole(_: Any, tokens: Sequence[Any]) -> int:
    text = tokens[0].value.replace("_", "")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be a whole number, got {tokens[0].value!r}") from None


Whole = Annotated[int, Parameter(converter=_whole)]
