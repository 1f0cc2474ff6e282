"""Figures of a task from what is kept of its items: of each model with an interval, and of two on the same items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from interlace.evaluate.ask import Row, unconditional_is_scored
from interlace.evaluate.intervals import difference, difference_of_ratios, mean, ratio
from interlace.evaluate.task import Task

Sides = Sequence[Sequence[Row]]
"""The rows of one model, or of two, in order of their items."""


def figures_of_task(task: Task, sides: Sides) -> dict[str, Any]:
    """Return the figures of a task: {"score": ..., "groups": ..., other figures}, each with its interval."""
    if task.settings.kind == "choice":
        main: str = task.settings.normalise
        rows = [row for side in sides for row in side]
        named = {
            name: _scored(name)
            for name in unconditional_is_scored(task)
            if name == main or any(row["picked"][name] != row["picked"][main] for row in rows)
        }
    else:
        named = {"score": lambda row: row["score"]}
        if task.settings.samples > 1:
            named["any of the samples"] = lambda row: _of_answers(row, "right", max)
        if task.settings.format:
            named["format"] = lambda row: _of_answers(row, "well_formed", _mean)
        named["ended"] = lambda row: _of_answers(row, "ended", _mean)
        main = "score"
    found: dict[str, Any] = {"kind": task.settings.kind, "score": main}
    found["figures"] = {name: _compared(sides, read) for name, read in named.items()}
    groups = dict.fromkeys(row["group"] for rows in sides for row in rows)
    if set(groups) - {""}:
        found["groups"] = {
            group: _compared([[row for row in rows if row["group"] == group] for rows in sides], named[main])
            for group in groups
        }
    if task.settings.kind == "generate":
        unjudged = [sum(not a.get("judged", True) for row in rows for a in row["answers"]) for rows in sides]
        tokens = [_mean([a["tokens"] for row in rows for a in row["answers"]]) for rows in sides]
        found |= {"not_judged": unjudged, "tokens_per_answer": tokens}
    return found


def _scored(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["scores"].get(name)


def _of_answers(row: Row, key: str, joined: Callable[[list[float]], float]) -> float | None:
    values = [float(a[key]) for a in row["answers"] if a.get(key) is not None]
    return joined(values) if values else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _compared(sides: Sides, read: Callable[[Row], float | None]) -> dict[str, Any]:
    """Return a figure of each model, and the difference of two on the items that both have a score of."""
    scores = [{row["item"]: value for row in rows if (value := read(row)) is not None} for rows in sides]
    found: dict[str, Any] = {"models": [mean(list(one.values())).to_dict() for one in scores]}
    if len(scores) == 2:
        both = [item for item in scores[0] if item in scores[1]]
        found["difference"] = difference(*([one[item] for item in both] for one in scores)).to_dict()
    return found


def figures_of_texts(sides: Sides) -> dict[str, Any]:
    """Return bits per byte: of all texts, by position and by length."""

    def compared(sums: Sequence[dict[int, tuple[float, float]]]) -> dict[str, Any]:
        arrays = [
            (np.array([nats / math.log(2) for nats, _ in one.values()]), np.array([size for _, size in one.values()]))
            for one in sums
        ]
        found: dict[str, Any] = {"models": [ratio(bits, size.astype(np.float64)).to_dict() for bits, size in arrays]}
        if len(sums) == 2:
            both = [item for item in sums[0] if item in sums[1]]
            pairs = [
                (np.array([one[i][0] / math.log(2) for i in both]), np.array([float(one[i][1]) for i in both]))
                for one in sums
            ]
            found["difference"] = difference_of_ratios(pairs[0], pairs[1]).to_dict()
        return found

    def whole(rows: Sequence[Row]) -> dict[int, tuple[float, float]]:
        return {row["item"]: (row["nats"], row["bytes"]) for row in rows if row["bytes"]}

    def at(rows: Sequence[Row], edge: str) -> dict[int, tuple[float, float]]:
        found = {row["item"]: row["by_position"].get(edge) for row in rows}
        return {item: (x[0], x[1]) for item, x in found.items() if x is not None and x[1]}

    edges = sorted({edge for rows in sides for row in rows for edge in row["by_position"]}, key=int)
    groups = sorted({row["group"] for rows in sides for row in rows}, key=int)
    in_group = {g: [whole([row for row in rows if row["group"] == g]) for rows in sides] for g in groups}
    by_position = {edge: [at(rows, edge) for rows in sides] for edge in edges}
    return {
        "kind": "texts",
        "score": "bits_per_byte",
        "figures": {"bits_per_byte": compared([whole(rows) for rows in sides])},
        "by_position": {edge: compared(sums) for edge, sums in by_position.items() if all(sums)},
        "groups": {group: compared(sums) for group, sums in in_group.items() if all(sums)},
    }
