"""report.html of an evaluation: figures with their intervals, and items of both models side by side."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlace.base.files import write_file
from interlace.evaluate.ask import Row
from interlace.evaluate.run import DATA, ITEMS, SIDES, items_file, kept_rows
from interlace.runs.folder import RunFolder
from interlace.runs.page import origin, page, table, visible

SHOWN = 200  # items of a task
LONG = 4000  # characters of a prompt: its middle is left out beyond
STYLE = """<style>
details { border: 1px solid #ddd; margin: .4rem 0; padding: .3rem .8rem } summary { cursor: pointer }
table { font-size: .9rem } td, th { padding: .3rem .5rem }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem }
.right { color: #15803d } .wrong { color: #b91c1c }
</style>"""


def shown(figure: dict[str, Any], digits: int = 3, sign: str = "") -> str:
    """Return a figure with its interval as text; sign: "+" for one that is a difference."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    if value is None:
        return "none"
    form = f"{sign}.{digits}f"
    if low is None or high is None:
        return f"{value:{form}} (1 item)"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def short(text: str, most: int = 40) -> str:
    """Return a label on one line, its control characters made visible."""
    plain = visible(" ".join(text.split()))
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def rows_of_figures(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table of all figures."""
    two = len(results["checkpoints"]) == 2
    columns = ["task", "figure", "items", *(["first", "second"] if two else ["value"])]
    columns += ["second - first", "wins / losses", "items needed"] if two else []
    rows = []
    for name, task in results["tasks"].items():
        score = task["score"]
        parts = [(f"{f} (score)" if f == score != "score" else f, x) for f, x in task["figures"].items()]
        parts += [(f"from byte {int(edge):,}", x) for edge, x in task.get("by_position", {}).items()]
        label = "texts from {:,} bytes" if name == DATA else "{}"
        parts += [
            (label.format(int(group)) if name == DATA else f"group {short(group)}", x)
            for group, x in task.get("groups", {}).items()
        ]
        for number, (figure, x) in enumerate(parts):
            row = [name if not number else "", figure, f"{x['models'][0]['items']:,}", *map(shown, x["models"])]
            if two:
                d = x["difference"]
                row += [
                    shown(d, sign="+"),
                    f"{d['wins']:,} / {d['losses']:,}",
                    f"{d['items_needed']:,}" if d["items_needed"] else "",
                ]
            rows.append(row)
    return columns, rows


def write_page(run: RunFolder, results: dict[str, Any], command: str) -> Path:
    """Write report.html in the run folder; return its path. Everything is read from the folder."""
    columns, rows = rows_of_figures(results)
    names = " and ".join(results["checkpoints"])
    sections = [
        STYLE,
        *(f'<p class="lead">{html.escape(said)}</p>' for said in lead(results)),
        table(columns, rows, words=2),
        "<p>Intervals hold 95 %: Wilson's of shares, Tango's of their paired differences, and of all else the "
        "studentised bootstrap by item. Items needed: so that a difference of this size is told from 0 in 80 % of such "
        "evaluations. Normalisations that choose as the score does are left out.</p>",
    ]
    for name, task in results["tasks"].items():
        sides = [
            {row["item"]: row for row in kept_rows(items_file(run.path, name, side))}
            for side, _ in zip(SIDES, results["checkpoints"], strict=False)
        ]
        if task["kind"] != "texts":
            sections += [f"<h2>{html.escape(name)}</h2>", *_items(sides)]
    tables = run.tables()
    sections.append(f"<p>All items: <code>{ITEMS}/</code> in this folder.</p>")
    sections.append(origin(command, tables.get("versions", {}), tables.get("machine", {})))
    write_file(run.path / "report.html", page(f"interlace evaluate: {names}", sections))
    return run.path / "report.html"


def lead(results: dict[str, Any]) -> list[str]:
    """Return a sentence for each task that says what was found."""
    said = []
    for name, task in results["tasks"].items():
        main = task["figures"][task["score"]]
        first = main["models"][0]
        text = f"{name}: {shown(first)} over {first['items']:,} items"
        if "difference" in main:
            d = main["difference"]
            apart = d["low"] is not None and (d["low"] > 0 or d["high"] < 0)
            text += f"; the second {shown(main['models'][1])}, a difference of {shown(d, sign='+')}"
            needed = f"; about {d['items_needed']:,} items would be needed" if d["items_needed"] else ""
            text += ", which is significant" if apart else f", which is not significant{needed}"
        if any(task.get("not_judged", ())):
            count = ", ".join(f"{n:,}" for n in task["not_judged"])
            text += f"; nothing could be proved of {count} answers, which count as wrong"
        said.append(text + ".")
    return said


def _items(sides: Sequence[dict[int, Row]]) -> list[str]:
    """Return items as HTML: those on which the models differ first."""
    numbers = list(sides[0])
    if len(sides) == 2:
        numbers.sort(key=lambda i: (sides[0][i]["score"] == sides[1].get(i, {}).get("score"), i))
    left = len(numbers) - SHOWN
    found = [_item([side[i] for side in sides if i in side]) for i in numbers[:SHOWN]]
    return [*found, f"<p>And {left:,} more.</p>"] if left > 0 else found


def _item(rows: Sequence[Row]) -> str:
    scores = f"score{'s' * (len(rows) > 1)} " + ", ".join(f"{row['score']:g}" for row in rows)
    prompt = visible(rows[0]["prompt"])
    if len(prompt) > LONG:
        prompt = f"{prompt[: LONG // 2]}\n[{len(prompt) - LONG:,} characters left out]\n{prompt[-LONG // 2 :]}"
    group = f", group {short(rows[0]['group'])}" if rows[0]["group"] else ""
    ending = " ".join(rows[0]["prompt"][-1000:].split())
    ending = ending if len(ending) <= 90 else "... " + ending[-90:].partition(" ")[2]
    parts = "".join(f"<div>{_side(row)}</div>" for row in rows)
    gold = f"<p>Right is: {html.escape(visible(rows[0]['gold'])[:LONG])}</p>" if rows[0].get("gold") else ""
    return (
        f"<details><summary>Item {rows[0]['item']}{html.escape(group)}: {scores} "
        f"<small>{html.escape(visible(ending))}</small></summary><pre>{html.escape(prompt)}</pre>{gold}"
        f'<div class="sides">{parts}</div></details>'
    )


def _side(row: Row) -> str:
    if "choices" in row:
        best = row["nats"]
        lines = [
            f'<li class="{"right" if i in row["right"] else "wrong"}">{html.escape(visible(choice))}: {nats:.2f}</li>'
            for i, (choice, nats) in enumerate(zip(row["choices"], best, strict=True))
        ]
        return f"<p>log-likelihood, nats; the right one is green</p><ul>{''.join(lines)}</ul>"
    found = []
    for one in row["answers"]:
        kind = "right" if one["right"] else "wrong"
        why = f" ({html.escape(visible(one['why']))})" if one.get("why") else ""
        said = kind if one.get("judged", True) else "nothing was proved"
        found.append(
            f'<p class="{kind}">{said}{why}, {one["tokens"]} tokens'
            f"{'' if one['ended'] else ', cut off'}</p><pre>{html.escape(visible(one['text']))}</pre>"
        )
    return "".join(found)


def read_results(run: Path) -> dict[str, Any]:
    """Return the results that a run folder holds."""
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found
