"""`interlace quickstart`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from interlace.cli.output import Meter, count, duration, err, print_json, print_table, say
from interlace.cli.output import out as console
from interlace.cli.values import Place
from interlace.runs.progress import Progress


def quickstart(
    *,
    minutes: float = 4.0,
    out: Place = Path("runs/quickstart"),
    data: Place | None = None,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train a hybrid and a transformer side by side on real text, and compare them.

    The text is the source of Python's standard library, or your own. Interrupted and started again, it goes on.

    Examples:

        interlace quickstart

        interlace quickstart --minutes 20 --data my-texts/ --out runs/mine

    Parameters
    ----------
    minutes: float
        Time for everything, reading the text included.
    out: Path
        The folder for both models, the plot and the report.
    data: Path
        A file or folder of text; the standard library's source code if not given.
    device: str
        "cpu", or "cuda".
    json: bool
        Print one JSON document instead of a table.
    """
    from interlace.base.errors import RunError
    from interlace.base.files import user_path
    from interlace.ops.core import kernels
    from interlace.study.quickstart.report import comparison, next_commands, sentence
    from interlace.study.quickstart.run import quickstart as run

    out = user_path(out, RunError)
    kernels.keep_memory()  # of this process, which trains and then ends
    with Scoreboard() as board:
        results = run(minutes, out, data, board.update, device)
    if json:
        print_json(results)
        return
    for name, model in results["models"].items():
        say(f"A sample of the {name}", style="bold")
        say(Text(model["sample"]), style="dim")
        console.print()
    print_table("Compared", *comparison(results))
    say(sentence(results), style="bold")
    say(f"\nReport: {out / 'report.html'}   Plot: {out / 'loss.png'}   ({duration(results['seconds'])})")
    say("\nNext, try:", style="bold")
    for command in next_commands(out, results):
        say(f"  {command}", whole=True)


class Scoreboard:
    """Both models' curves while they train: live on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        """Nothing is shown before something happens."""
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.steps, self.seconds_left = 0, 0.0
        self.meter = Meter()
        self.live: Live | None = None
        self.last = time.monotonic()

    def __enter__(self) -> Scoreboard:
        """Start drawing."""
        self.meter.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last picture standing."""
        if self.live is not None:
            self.live.update(self.picture())
            self.live.stop()
        self.meter.__exit__()

    def update(self, now: Progress) -> None:
        """A step of one model in the race, or what goes on before and after it."""
        if now.label == "race":
            self._step(now.detail["model"], now.detail, int(now.total), now.seconds_left or 0.0)
        elif self.live is None:
            self.meter.update(now)

    def _step(self, name: str, row: dict[str, Any], steps: int, seconds_left: float) -> None:
        self.rows.setdefault(name, []).append(row)
        self.steps, self.seconds_left = steps, seconds_left
        if err.is_terminal:
            if self.live is None:
                self.meter.__exit__()
                self.live = Live(console=err, refresh_per_second=4, transient=False)
                self.live.start()
            self.live.update(self.picture())
        elif time.monotonic() - self.last > 10 or row["step"] == steps:
            self.last = time.monotonic()
            say(f"step {row['step']}/{steps}  {name}: {self.summary(name)}  {self.left()}", console=err)

    def left(self) -> str:
        """Time until both are done, scores and report included."""
        return f"{duration(self.seconds_left)} left"

    def summary(self, name: str) -> str:
        """Loss, speed and the last held-out score of a model."""
        rows = self.rows[name]
        recent = rows[-20:]
        text = f"loss {sum(r['loss'] for r in recent) / len(recent):.3f}"
        text += f"  {count(sum(r['tokens_per_second'] for r in recent) / len(recent))} tokens/s"
        scored = [r["held_out_curve"] for r in rows if "held_out_curve" in r]
        return text + (f"  held out {scored[-1]:.3f} bits/byte" if scored else "")

    def picture(self) -> Group:
        """A line per model with its loss curve, and the time left."""
        table = Table.grid(padding=(0, 2))
        losses = {name: [r["loss"] for r in rows] for name, rows in self.rows.items()}
        everything = [x for values in losses.values() for x in values]
        for name, values in losses.items():
            curve = sparkline(values, min(everything), max(everything))
            table.add_row(Text(name, style="bold"), Text(curve, style="cyan"), self.summary(name))
        step = max(rows[-1]["step"] for rows in self.rows.values())
        return Group(table, Text(f"step {step} of {self.steps}, {self.left()}", style="dim"))


def sparkline(values: Sequence[float], low: float, high: float, width: int = 32) -> str:
    """Values as a row of block characters, averaged into at most `width` cells."""
    cells = min(width, len(values))
    edges = [i * len(values) // cells for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    span = max(high - low, 1e-9)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (m - low) / span))] for m in means)
