"""Texts that every encoding can write, and plain data as text."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any


def clean(text: str) -> str:
    """Return the text with lone surrogates, which no encoding can write, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_values(value: Any) -> Any:
    """Return plain data with `clean` applied to every text in it, keys included."""
    if isinstance(value, str):
        return clean(value) if not value.isascii() else value
    if isinstance(value, dict):
        return {clean(str(k)): clean_values(v) for k, v in value.items()}
    return [clean_values(v) for v in value] if isinstance(value, list) else value


def finite(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and infinities become None."""
    if isinstance(value, dict):
        return {name if isinstance(name, str) else str(name): finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_of(value: Any) -> str:
    """Return a column as text: strings unchanged, "" for None, and anything else as JSON."""

    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def canonical(value: Any) -> str:
    """Return JSON that is the same for equal values: sorted keys, no spaces, everything beyond ASCII escaped."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Return a hash of plain data: 32 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]
