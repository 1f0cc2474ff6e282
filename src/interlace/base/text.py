"""Texts as every encoding knows them."""

from __future__ import annotations

import math
from typing import Any


def clean(text: str) -> str:
    """The text with lone surrogates, which no encoding knows, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_values(value: Any) -> Any:
    """Plain data with `clean` done to every text in it, keys included."""
    if isinstance(value, str):
        return clean(value) if not value.isascii() else value
    if isinstance(value, dict):
        return {clean(str(k)): clean_values(v) for k, v in value.items()}
    return [clean_values(v) for v in value] if isinstance(value, list) else value


def finite(value: Any) -> Any:
    """A value that JSON can hold, which has no NaN and no infinity: None stands for them."""
    if isinstance(value, dict):
        return {name if isinstance(name, str) else str(name): finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
