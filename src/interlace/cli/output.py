"""What all verbs print with: tables or one JSON document on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console(highlight=False, markup=False)  # what a model wrote may hold what looks like markup
err = Console(stderr=True, highlight=False, markup=False)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column is text and whose others are numbers."""
    table = Table(header_style="bold", box=None, pad_edge=False, show_header=any(columns))
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    for row in rows:
        table.add_row(*row)
    if title:
        out.print(title, style="bold")
    out.print(table)
    out.print()


def count(value: float) -> str:
    """A large number in three digits: 1.23M."""
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}" if abs(value) < 100 * limit else f"{value / limit:.0f}{unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Bytes in three digits: 1.23 MiB."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return (
                f"{value / 1024**power:.3g} {unit}"
                if value < 100 * 1024**power
                else f"{value / 1024**power:.0f} {unit}"
            )
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


class Meter:
    """Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, every_seconds: float = 5.0):
        """every_seconds: between plain lines."""
        self._every, self._last, self._label = every_seconds, 0.0, ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=err, transient=True) if err.is_terminal else None
        self._task: Any = None

    def __enter__(self) -> Meter:
        """Start drawing."""
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        if self._progress is not None:
            self._progress.stop()

    def update(self, label: str, done: float, total: float, note: str = "") -> None:
        """Show how far the work called `label` is; total 0 if unknown."""
        if self._progress is not None:
            if label != self._label or self._task is None:
                if self._task is not None:
                    self._progress.remove_task(self._task)
                self._task = self._progress.add_task(label, total=total or None, note=note)
            self._progress.update(self._task, completed=done, total=total or None, note=note)
        else:
            now = time.monotonic()
            if label != self._label or now - self._last > self._every or (total and done >= total):
                share = f" {done / total:4.0%}" if total else ""
                err.print(f"{label}{share} {note}".rstrip(), soft_wrap=True)
                self._last = now
        self._label = label
