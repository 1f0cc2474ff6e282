"""Read the text and the thought of a turn, in each of the forms that endpoints and datasets use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where endpoints put a trace; the first that holds one counts, since some send two copies.
REASONING = ("reasoning_content", "reasoning", "reasoning_text", "thinking", "reasoning_details", "thinking_blocks")
THOUGHTS = ("thinking", "reasoning")  # types of parts of a content


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return the trace of a message, in whatever field or part it stands; an encrypted trace counts as none."""
    for name in REASONING:
        if found := _trace(message.get(name)):
            return found
    parts = message.get("content")
    thoughts = [p for p in parts if table(p).get("type") in THOUGHTS] if isinstance(parts, list) else []
    return "".join(_trace(part) for part in thoughts)


def _trace(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_trace, value))
    names = ("text", "thinking", "summary", "content", "value")
    return next((found for name in names if (found := _trace(table(value).get(name)))), "") if value else ""


def table(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def written(value: Any) -> str:
    """Return a text, or the texts of a list of parts, without thoughts."""
    if isinstance(value, list):
        parts = (part if isinstance(part, str) else table(part) for part in value)
        return "".join(p if isinstance(p, str) else written(p.get("text")) for p in parts if _is_text(p))
    return value if isinstance(value, str) else ""


def _is_text(part: str | dict[str, Any]) -> bool:
    return isinstance(part, str) or part.get("type") not in THOUGHTS
