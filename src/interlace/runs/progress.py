"""How far long work is, told in one way by all of it; a verb shows it as a bar, a table or plain lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """A moment of long work.

    Attributes:
        label: what is going on.
        done, total: how much of it, in whatever unit; total 0 if unknown.
        seconds_left: until all of it is done; None if unknown.
        detail: what else a display may show: the row that a training step logged, what runs at present, ...
    """

    label: str
    done: float
    total: float
    seconds_left: float | None = None
    detail: Any = None


Watch = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Show nothing."""
