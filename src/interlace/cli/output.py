"""What all verbs print with: tables or one JSON document on standard output, progress on standard error."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from interlace.base.text import finite
from interlace.runs.progress import Progress as Moment


class Plain(Console):
    """A console that lets whoever runs a verb know when its reader has left."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; rich would end the process with exit code 1."""
        raise BrokenPipeError


out = Plain(highlight=False, markup=False)  # what a model wrote may hold what looks like markup
WIDE = 10_000  # columns of a pipe, which wraps nothing
err = Plain(stderr=True, highlight=False, markup=False)


def say(text: str | Text, style: str = "", console: Console | None = None, whole: bool = False) -> None:
    """A sentence on standard output, or on another console: one line in a pipe, lines of whole words on a terminal.

    whole: whether it holds a command, which a terminal that wraps it by itself lets one copy.
    """
    console = console or out
    longest = max((len(word) for word in str(text).split()), default=0)
    console.print(text, style=style, soft_wrap=whole or not console.is_terminal or longest > console.width)


def print_json(document: Any) -> None:
    """One JSON document on standard output; null stands for what is not finite."""
    sys.stdout.write(json.dumps(finite(document), indent=2, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> None:
    """A table whose first `words` columns hold words, and the others numbers; no word or number is ever cut.

    A pipe gets one line for each row. On a terminal that is too narrow each row becomes a list.
    """
    if title:
        say(title, style="bold")
    longest = [max((len(w) for cell in column for w in cell.split()), default=0) for column in _columns(columns, rows)]
    if out.is_terminal and sum(longest) + 2 * len(longest) > out.width:
        _print_lists(columns, rows)
    else:
        table = Table(header_style="bold", box=None, pad_edge=False, show_header=any(columns))
        for index, (name, width) in enumerate(zip(columns, longest, strict=True)):
            side: Literal["left", "right"] = "left" if index < words else "right"
            table.add_column(name, justify=side, min_width=width, no_wrap=not out.is_terminal)
        for row in rows:
            table.add_row(*row)
        console = out if out.is_terminal else Plain(file=out.file, highlight=False, markup=False, width=WIDE)
        console.print(table, crop=False)
    out.print()


def _columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[name, *(row[i] for row in rows)] for i, name in enumerate(columns)]


def _print_lists(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row as its first cell, and under it a line for each other cell that holds something."""
    for first, *rest in rows:
        out.print(first, soft_wrap=True)
        for name, cell in zip(columns[1:], rest, strict=True):
            if cell:
                out.print(f"  {name} {cell}" if name else f"  {cell}", soft_wrap=True)
    if not rows:
        out.print("  ".join(columns), soft_wrap=True)


def say_recommended(taken: dict[str, Any]) -> None:
    """Which settings of sampling come from the model's release."""
    if taken:
        settings = ", ".join(f"{key} {value}" for key, value in taken.items())
        say(f"sampling from generation_config.json: {settings}", style="dim", console=err)


def count(value: float) -> str:
    """A large number in three digits: 1.23M."""
    number, prefix = scaled(value)
    return f"{number}{prefix}"


def quantity(value: float, unit: str) -> str:
    """A large number of a unit: 45.3 GFLOP/s."""
    number, prefix = scaled(value)
    return f"{number} {prefix}{unit}"


def scaled(value: float) -> tuple[str, str]:
    """Three digits and the prefix of a power of a thousand, such that no number shows a thousand of the smaller one."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    if not math.isfinite(value):
        return str(value), ""
    power = 0
    while power < len(prefixes) - 1 and float(f"{abs(value) / 1000**power:.3g}") >= 1000:
        power += 1
    shown = value / 1000**power
    digits = f"{shown:.0f}" if not power or abs(shown) >= 100 else f"{shown:.3g}"
    return digits, prefixes[power]


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
    if not math.isfinite(seconds):
        return "unknown"
    if 0 < seconds < 0.5:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


class Meter:
    """Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, every_seconds: float = 5.0):
        """every_seconds: between plain lines."""
        self._every, self._last, self._label, self._began = every_seconds, 0.0, "", (0.0, 0.0)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
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

    def update(self, now: Moment, note: str | None = None) -> None:
        """Show how far the work is, with a note (its detail where none is given) and the time left."""
        label, done, total = now.label, now.done, now.total
        left = "" if now.seconds_left is None else f"{duration(now.seconds_left)} left"
        if note is None:
            note = f"{left}  {now.detail if isinstance(now.detail, str) else ''}".strip()
        else:
            note = f"{note}  {left}".rstrip()
        if label != self._label:
            self._began = (time.monotonic(), done)
        began, first = self._began
        if total and done > first and done < total and "left" not in note and self._progress is not None:
            seconds = (time.monotonic() - began) / (done - first) * (total - done)
            note = f"{note}  {duration(seconds)} left".strip()
        if self._progress is not None:
            if label != self._label or self._task is None:
                if self._task is not None:
                    self._progress.remove_task(self._task)
                self._task = self._progress.add_task(label, total=total or None, note=note)
            self._progress.update(self._task, completed=done, total=total or None, note=note)
        else:
            clock = time.monotonic()
            if label != self._label or clock - self._last > self._every or (total and done >= total):
                share = f" {done / total:4.0%}" if total else ""
                err.print(f"{label}{share} {note}".rstrip(), soft_wrap=True)
                self._last = clock
        self._label = label
