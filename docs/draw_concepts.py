"""Draws docs/concepts.png: three segments on one flat axis, cut into chunks, and where state flows."""

from __future__ import annotations

import itertools
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

LENGTHS, CHUNK = (11, 1, 16), 8
COLOURS = ("#c2410c", "#1d4ed8", "#4d7c0f")


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(10, 2.9), dpi=120, layout="constrained")
    axis = figure.add_subplot()
    start = 0
    for index, (length, colour) in enumerate(zip(LENGTHS, COLOURS, strict=True)):
        for token in range(start, start + length):
            axis.add_patch(Rectangle((token + 0.06, 0), 0.88, 0.9, color=colour, alpha=0.8))
        axis.text(
            start + length / 2, 1.75, f"segment {index}\n{length} token{'s' * (length > 1)}", ha="center", color=colour
        )
        cuts = sorted({start, start + length, *range(-(-start // CHUNK) * CHUNK, start + length, CHUNK)})
        for a, b in itertools.pairwise(cuts):
            axis.plot([a + 0.1, b - 0.1], [-0.35, -0.35], color=colour, linewidth=3, solid_capstyle="butt")
            if b < start + length:
                arrow = FancyArrowPatch(
                    (b - 0.7, -0.5), (b + 0.7, -0.5), connectionstyle="arc3,rad=0.6", arrowstyle="->", mutation_scale=12
                )
                axis.add_patch(arrow)
                axis.text(b, -1.45, "state", ha="center", fontsize=9)
        start += length
    for edge in range(0, start + CHUNK, CHUNK):
        edge = min(edge, start)
        axis.plot([edge, edge], [-0.15, 1.15], color="black", linewidth=1.2, linestyle=":")
    for chunk in range(-(-start // CHUNK)):
        middle = (chunk * CHUNK + min((chunk + 1) * CHUNK, start)) / 2
        axis.text(middle, 1.12, f"chunk {chunk}", ha="center", fontsize=9, color="#555555")
    axis.text(-0.3, -0.35, "pieces", ha="right", va="center", fontsize=9)
    axis.text(-0.3, 0.45, "tokens", ha="right", va="center", fontsize=9)
    axis.set_xlim(-2.5, start + 0.5)
    axis.set_ylim(-1.7, 2.9)
    axis.axis("off")
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("concepts.png"))
