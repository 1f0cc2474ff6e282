"""The ways to judge an answer, and what each compares it with."""

from __future__ import annotations

from typing import Literal

Method = Literal["exact", "numeric", "symbolic", "schema", "pattern", "python"]

NEEDS: dict[str, str] = {
    "exact": "gold",
    "numeric": "gold",
    "symbolic": "gold",
    "schema": "schema",
    "pattern": "pattern",
    "python": "tests",
}
