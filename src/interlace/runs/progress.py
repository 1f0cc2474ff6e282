"""The progress of long work, in one form for all of it; a verb shows it as a bar, a table or plain lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far long work is at one moment.

    Attributes:
        label: what is going on.
        done, total: how much of it, in whatever unit; total 0 if unknown.
        seconds_left: until all of it is done; None if unknown.
        detail: what else a display may show, such as the row that a training step logged, or what runs at present.
    """

    label: str
    done: float
    total: float
    seconds_left: float | None = None
    detail: Any = None


Watch = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Show nothing."""
