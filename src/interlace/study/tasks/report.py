"""The results of a study of tasks for a reader: the same table in the terminal and on the page, and the curves."""

from __future__ import annotations

import html
import inspect
import io
from pathlib import Path
from typing import Any

from interlace.base.files import write_file
from interlace.runs.folder import RunFolder
from interlace.runs.page import origin, page, picture, table
from interlace.runs.versions import versions
from interlace.study.tasks.registry import task as find

COLOURS = ("#7a7a7a", "#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#be185d", "#a16207")


def columns(found: dict[str, Any]) -> list[str]:
    """Return the columns of a task's table; difficulties beyond training have an asterisk."""
    last = found["trained"][-1]
    tested = [f"{d}{'*' if d > last else ''}" for d in found["tested"]]
    return ["model", "rate", *tested, "best", "solved", "steps"]


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Return a row for each model.

    It holds medians by difficulty, the best seed at the hardest trained difficulty, how many seeds solved it, and the
    fewest steps that this took.
    """
    lines = []
    key = str(found["hardest_trained"])
    for name, model in found["models"].items():
        steps = [s for s in model["solved"] if s is not None]
        scores = model["scores"][key]
        lost = sum(d is not None for d in model["diverged"])
        lines.append(
            [
                Path(name).stem,
                f"{model['learning_rate']:g}",
                *(f"{model['median'][str(d)]:.3f}" for d in found["tested"]),
                f"{max(scores):.3f}",
                f"{len(steps)}/{len(model['solved'])}{f', {lost} diverged' if lost else ''}",
                f"{min(steps):,}" if steps else "-",
            ]
        )
    for name, floor in found["floors"].items():
        lines.append([name, "", *(f"{floor[str(d)]:.3f}" for d in found["tested"]), "", "", ""])
    return lines


def sentence(name: str, found: dict[str, Any]) -> str:
    """Say who solved the task and who did not, and who kept it at lengths never trained on."""
    solved = {Path(m).stem: x["share_solved"] for m, x in found["models"].items()}
    every = [m for m, share in solved.items() if share == 1]
    some = [
        f"{m} ({sum(s is not None for s in found['models'][k]['solved'])} of {len(found['models'][k]['solved'])})"
        for k in found["models"]
        if 0 < solved[m := Path(k).stem] < 1
    ]
    none = [m for m, share in solved.items() if share == 0]
    groups = [("every seed of", every), ("some of", some), ("none of", none)]
    parts = [f"by {how} {listed(names)}" for how, names in groups if names]
    return f"{name}: solved {', '.join(parts)}, within {found['budget']['steps']:,} steps."


def listed(names: list[str]) -> str:
    """Return names as text: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plot(name: str, found: dict[str, Any]) -> bytes:
    """Return a PNG: accuracy over steps at the hardest trained difficulty (left), by difficulty at the end (right)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    key, tested = str(found["hardest_trained"]), found["tested"]
    for colour, (model, x) in zip(COLOURS * 4, found["models"].items(), strict=False):
        label = Path(model).stem
        for index, curve in enumerate(x["curves"]):
            points = [(r["step"], r["scores"][key]) for r in curve]
            left.plot(
                *zip(*points, strict=True), color=colour, alpha=0.75, linewidth=1.2, label=None if index else label
            )
        right.plot(tested, [x["median"][str(d)] for d in tested], color=colour, marker="o", markersize=4, label=label)
        low, high = ([f(x["scores"][str(d)]) for d in tested] for f in (min, max))
        right.fill_between(tested, low, high, color=colour, alpha=0.12, linewidth=0)
    for style, (label, floor) in zip((":", "-."), found["floors"].items(), strict=False):
        right.plot(tested, [floor[str(d)] for d in tested], color="#999999", linestyle=style, label=label)
    if max(tested) > found["trained"][-1]:
        right.axvline(found["trained"][-1], color="#999999", linewidth=0.8, linestyle="--")
    right.set_xscale("log", base=2)
    right.set_xticks(tested, [str(d) for d in tested])
    right.minorticks_off()
    left.set_xlabel("steps")
    left.set_ylabel(f"share right at {key}" + (" (whole samples)" if found["scored_by"] == "sequence" else ""))
    right.set_xlabel("difficulty (dashed: the hardest trained)")
    right.set_ylabel("share right at the end: median, range")
    for axis in (left, right):
        axis.set_ylim(-0.03, 1.03)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    right.legend(frameon=False, fontsize=8)
    figure.suptitle(name, fontsize=11)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def write_report(out: Path, results: dict[str, Any], command: str) -> Path:
    """Write a PNG for each task, and report.html."""
    tables = RunFolder(out).tables() if RunFolder(out).file.is_file() else {}
    sections = [origin(command, tables.get("versions") or versions(), tables.get("machine", {}))]
    for name, found in results["tasks"].items():
        png = plot(name, found)
        write_file(out / f"{name}.png", png)
        budget, shape = found["budget"], found["shape"]
        about = (
            f"{shape['depth']} layers of width {shape['width']}, {shape['heads']} heads; {budget['steps']:,} steps of "
            f"{budget['rows']} samples drawn anew; learning rates tried with the first seed: "
            f"{', '.join(f'{r:g}' for r in budget['rates'])}. Scores are medians over {results['seeds']} seeds on "
            f"{budget['tests']} samples for each difficulty; an asterisk marks difficulties beyond training. Solved: "
            f"at least 0.95 at {found['hardest_trained']}."
        )
        example = html.escape(inspect.cleandoc(type(find(name)).__doc__ or ""))
        sections += [f"<h2>{html.escape(name)}</h2>", f'<p class="lead">{html.escape(sentence(name, found))}</p>']
        sections += [
            picture(png, f"{name}: curves"),
            table(columns(found), rows(found)),
            f"<p>{html.escape(about)}</p>",
        ]
        sections += [f"<pre>{example}</pre>"]
    write_file(out / "report.html", page("interlace study: tasks", sections))
    return out / "report.html"
