"""report.html of a run: one file, its picture inside, nothing fetched from anywhere."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from interlace.base.files import write_file
from interlace.base.page import page, picture, table
from interlace.train.run import RunFolder

COLOURS = {"transformer": "#7a7a7a", "hybrid": "#c2410c"}

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y."""


def loss_plot(
    training: Mapping[str, Curve], held_out: Mapping[str, Curve], mark: tuple[float, float, str] | None
) -> bytes:
    """A PNG: training loss (left) and held-out bits per byte (right) against tokens, one colour per model.

    `mark` is a level on the right, up to a number of tokens, with a label.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, curves, label in (
        (left, training, "training loss, nats per token"),
        (right, held_out, "held-out bits per byte"),
    ):
        for name, (x, y) in curves.items():
            colour = COLOURS.get(name, "#1d4ed8")
            axis.plot(x, y, label=name, color=colour, linewidth=1.6, marker="o" if axis is right else "", markersize=3)
        axis.set_xlabel("tokens")
        axis.set_ylabel(label)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 6), useMathText=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    if mark is not None:
        tokens, level, label = mark
        right.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        right.axvline(tokens, color="#999999", linewidth=0.8, linestyle="--")
        right.annotate(label, (tokens, level), (-6, -13), textcoords="offset points", ha="right", fontsize=9)
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    return raw.getvalue()


def smooth(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """An exponential moving average, without the bias of its start."""
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed


def curves(run: RunFolder, score: str = "held_out_bits_per_byte") -> tuple[Curve, Curve]:
    """(training loss, smoothed; the metric called `score`) of a run, each against tokens."""
    rows = list(run.metrics())
    scored = [m for m in rows if score in m]
    steps = [m for m in rows if "loss" in m]  # a divergence has none
    loss = ([m["tokens"] for m in steps], smooth([m["loss"] for m in steps]))
    return loss, ([m["tokens"] for m in scored], [m[score] for m in scored])


def write_report(run: RunFolder) -> Path:
    """loss.png and report.html in a run folder; returns the report's path."""
    loss, score = curves(run)
    png = loss_plot({"model": loss}, {"model": score}, None)
    write_file(run.path / "loss.png", png)
    rows = [[f"{t:,.0f}", f"{b:.4f}"] for t, b in zip(*score, strict=True)]
    config = html.escape((run.path / "run.toml").read_text(encoding="utf-8"))
    sections = [picture(png, "loss curves"), table(["tokens", "held-out bits per byte"], rows), f"<pre>{config}</pre>"]
    write_file(run.path / "report.html", page(f"interlace run: {run.path.name}", sections))
    return run.path / "report.html"
