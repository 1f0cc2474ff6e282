"""report.html of a distillation: rows made, rows dropped and why, samples to read, and the cost."""

from __future__ import annotations

import html
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from interlace.base.errors import Failure, RunError
from interlace.base.files import user_path, write_file
from interlace.base.schema import validate
from interlace.distill.export import Unusable, conversation
from interlace.distill.folder import DistillRun, versions
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import Row
from interlace.distill.recipe import Output
from interlace.distill.run import summary
from interlace.distill.steps.grade import agreement
from interlace.runs.page import page, picture, table
from interlace.runs.progress import Progress, Watch, silent
from interlace.sandbox.templates import Templates
from interlace.text.topics import distinct, topics

LOOKED_AT = 3000  # conversations that lengths, runs and topics are counted on
SHOWN, SHOWN_DROPPED = 8, 3
LONGEST = 1500  # characters of a turn that are shown
STYLE = """<style>
.turn { border-left: 3px solid #ddd; padding: .1rem .8rem; margin: .4rem 0 }
.turn { white-space: pre-wrap; overflow-wrap: anywhere }
.user { border-color: #7a7a7a } .assistant { border-color: #c2410c } .reasoning { border-color: #e7c9b5; color: #666 }
.who { font-size: .8rem; color: #666 } details { margin: .6rem 0 } summary { cursor: pointer }
.sample { border: 1px solid #eee; padding: .4rem .8rem; margin: .8rem 0 }
</style>"""


def report(run: str | Path, watch: Watch = silent, out: str | Path | None = None) -> Path:
    """Write report.html and return its path.

    Args:
        out: the file to write; report.html in the run folder if not given.

    Raises:
        RunError, DataError: the run cannot be read.
        Failure: the file cannot be written.
    """
    folder = DistillRun(Path(run))
    ledger, templates = folder.open_ledger(), Templates()
    try:
        found = summary(folder, ledger)
        made, unusable = _conversations(folder, ledger, templates, watch)
        sections = [
            STYLE,
            _lead(folder, found, made),
            "<h2>Steps</h2>",
            table(*step_rows(found), 2),
            _ended(found),
            *_samples(folder, ledger, made, unusable, found),
            *_shape(made),
            *_judges(folder, ledger),
            *_contamination(folder, ledger),
            "<h2>Cost by step</h2>",
            table(*cost_rows(found), 3),
            _spent(found),
            *_origin(folder),
        ]
    finally:
        templates.close()
        ledger.close()
    path = folder.path / "report.html" if out is None else user_path(out, RunError)
    try:
        write_file(path, page(f"Distillation: {folder.path.name}", [s for s in sections if s]))
    except Failure as error:
        raise Failure(f"{error}; name another file with --out") from None
    return path


def _conversations(
    folder: DistillRun, ledger: Ledger, templates: Templates, watch: Watch
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return conversations of a random part of the rows, in order, and counts of rows that make none, by reason."""
    settings = validate(Output, folder.about["recipe"].get("output", {}), "output")
    total = ledger.rows.count(folder.last.id).get("ok", 0)
    draw, made = random.Random(0), []
    unusable: dict[str, int] = {}
    for done, row in enumerate(ledger.rows.ordered(folder.last.id), start=1):
        if draw.random() * total >= LOOKED_AT:
            continue
        try:
            made.append(conversation(row, settings, templates))
        except Unusable as error:
            unusable[str(error)] = unusable.get(str(error), 0) + 1
        if not done % 200:
            watch(Progress("reading", done, total))
    return made, unusable


def _lead(folder: DistillRun, found: dict[str, Any], made: Sequence[Any]) -> str:
    last = next(s for s in found["steps"] if s["step"] == folder.last.name)
    rows = last["rows"].get("ok", 0)
    began = sum(s["rows"].get("ok", 0) for s in found["steps"] if not s["from"])
    spent = found["spent"]
    unfinished = "" if all(s["done"] for s in found["steps"]) else " The run is not finished."
    return (
        f'<p class="lead">{rows:,} rows from {began:,}, with {spent["requests"]:,} requests, {spent["tokens"]:,} '
        f"tokens and {spent['cost']:,.4f} USD.{unfinished}</p>"
    )


def step_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table: rows by step and state."""
    states = list(dict.fromkeys(s for step in found["steps"] for s in step["rows"])) or ["ok"]
    rows = [
        [f"{s['step']} ({s['kind']})" + ("" if s["done"] else ", not finished"), ", ".join(s["from"]) or "-"]
        + [f"{s['rows'].get(state, 0):,}" for state in states]
        for s in found["steps"]
    ]
    return ["step", "from", *states], rows


def cost_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table: requests, tokens, cost and time by step and teacher."""
    columns = [
        "step",
        "teacher",
        "answers",
        "requests",
        "prompt tokens",
        "answer tokens",
        "USD",
        "mean seconds",
        "tries",
    ]
    rows = []
    for step in found["steps"]:
        for u in step["usage"]:
            mean = (u["seconds"] or 0.0) / u["requests"]
            numbers = [f"{u[k] or 0:,}" for k in ("requests", "prompt_tokens", "answer_tokens")]
            rows.append([step["step"], u["teacher"], u["state"], *numbers, f"{u['cost'] or 0:.4f}", f"{mean:.2f}"])
            rows[-1].append(f"{u['tries'] or 0:,}")
    return columns, rows or [["no step asked a teacher", *[""] * (len(columns) - 1)]]


def _ended(found: dict[str, Any]) -> str:
    rows = [[s["step"], e["state"], e["reason"], f"{e['rows']:,}"] for s in found["steps"] for e in s["ended"][:20]]
    notes = [f"<p>{html.escape(s['step'])}: {html.escape(str(s['notes']))}</p>" for s in found["steps"] if s["notes"]]
    if not rows:
        return "<p>No row was dropped.</p>" + "".join(notes)
    return "<h2>Why rows ended</h2>" + table(["step", "state", "reason", "rows"], rows, 3) + "".join(notes)


def _spent(found: dict[str, Any]) -> str:
    spent = found["spent"]
    if not spent["lost_requests"]:
        return ""
    return (
        f"<p>{spent['lost_requests']:,} requests got no answer that could be used, because the connection broke or the "
        f"process was killed. They may have been charged: at most {spent['lost_tokens']:,} tokens and "
        f"{spent['lost_cost']:,.4f} USD, which the budget counts.</p>"
    )


def _turns(messages: Sequence[dict[str, Any]]) -> str:
    parts = []
    for turn in messages:
        if turn.get("reasoning_content"):
            parts.append(_turn("reasoning", turn["reasoning_content"]))
        parts.append(_turn(turn["role"], turn["content"]))
    return '<div class="sample">' + "".join(parts) + "</div>"


def _turn(who: str, text: str) -> str:
    cut = text if len(text) <= LONGEST else text[:LONGEST] + f" ... ({len(text) - LONGEST:,} characters more)"
    shown = html.escape("".join(c if c in "\n\t" or ord(c) >= 32 else "�" for c in cut))
    return f'<div class="who">{html.escape(who)}</div><div class="turn {html.escape(who)}">{shown}</div>'


def _samples(
    folder: DistillRun, ledger: Ledger, made: list[dict[str, Any]], unusable: dict[str, int], found: dict[str, Any]
) -> Iterator[str]:
    draw = random.Random(1)
    yield "<h2>Samples</h2>"
    if not made:
        yield "<p>There is no row to show.</p>"
    yield from (_turns(m["messages"]) for m in draw.sample(made, min(SHOWN, len(made))))
    for reason, count in unusable.items():
        yield f"<p>{count:,} of the rows that were looked at make no conversation: {html.escape(reason)}</p>"
    ids = {s.name: s.id for s in folder.stages}
    for step in found["steps"]:
        for ended in step["ended"][:6]:
            rows = list(_some(ledger, ids[step["step"]], ended["state"], ended["reason"]))
            title = f"{step['step']}: {ended['state']}: {ended['reason']} ({ended['rows']:,})"
            body = "".join(_columns(r) for r in rows)
            yield f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def _some(ledger: Ledger, stage: str, state: str, reason: str) -> Iterator[Row]:
    return (ledger.rows.row(id_) for id_ in ledger.rows.ended(stage, state, reason, SHOWN_DROPPED))


def _columns(row: Row) -> str:
    parts = [_turn(name, str(value)) for name, value in row.values.items() if value not in (None, "", [], {})]
    return '<div class="sample">' + "".join(parts) + "</div>"


def _shape(made: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the section on lengths, repeated runs of words, and topics."""
    if not made:
        return
    asked = ["\n".join(t["content"] for t in m["messages"] if t["role"] == "user") for m in made]
    said = ["\n".join(t["content"] for t in m["messages"] if t["role"] == "assistant") for m in made]
    yield f"<h2>Lengths, repetition, topics</h2><p>Of {len(made):,} conversations.</p>"
    yield picture(length_figure(asked, said), "lengths of questions and answers")
    rows = []
    for name, texts in (("questions", asked), ("answers", said)):
        shares = [f"{different / total:.3f}" if total else "-" for _, different, total in distinct(texts)]
        rows.append([name, *shares])
    yield "<p>Different runs of n words, as a share of all; low shares mean that texts repeat each other.</p>"
    yield table(["", "n = 1", "2", "3", "4"], rows)
    clusters = topics(asked)
    if clusters:
        cells = [
            [", ".join(t.words), asked[t.texts[0]][:120], f"{len(t.texts):,}", f"{len(t.texts) / len(asked):.0%}"]
            for t in clusters
        ]
        yield "<p>Topics of the questions by clustering: words that set each apart, and its most typical one.</p>"
        yield table(["words", "typical", "questions", "share"], cells, 2)


def length_figure(asked: Sequence[str], said: Sequence[str]) -> bytes:
    """Return a PNG with two histograms: characters of the questions and of the answers."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, texts, name, colour in ((axes[0], asked, "question", "#7a7a7a"), (axes[1], said, "answer", "#c2410c")):
        sizes = np.maximum(1, [len(t) for t in texts])
        low, high = float(sizes.min()), float(sizes.max())
        wide = high > 20 * low
        axis.hist(sizes, bins=np.geomspace(low, high + 1, 40) if wide else 40, color=colour)
        axis.set_xscale("log" if wide else "linear")
        axis.set_xlabel(f"characters of the {name} (median {int(np.median(sizes)):,})")
        axis.set_ylabel("rows")
        axis.spines[["top", "right"]].set_visible(False)
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    return raw.getvalue()


def _judges(folder: DistillRun, ledger: Ledger) -> Iterator[str]:
    """Yield, for each rubric, a table of how far its judges agree."""
    for stage in folder.stages:
        if stage.kind != "grade":
            continue
        rows = agreement_rows(folder, ledger, stage.name)
        if rows:
            yield f"<h2>Agreement of the judges: {html.escape(stage.name)}</h2>"
            yield "<p>kappa: Cohen's, quadratic weights; 1 for equal marks, 0 for what chance gives.</p>"
            yield table(["criterion", "judges", "rows", "equal marks", "kappa"], rows, 2)


def agreement_rows(folder: DistillRun, ledger: Ledger, name: str) -> list[list[str]]:
    """Return a table's rows, one for each criterion and pair of judges."""
    stage = next(s for s in folder.stages if s.name == name)
    recipe = next(s for s in folder.about["recipe"]["steps"] if s.get("name", s["kind"]) == name)
    into, levels = recipe.get("into", "score"), recipe.get("levels", 4)
    pairs: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for row in ledger.rows.ordered(stage.id, state=None):
        marks = row.values.get(f"{into}_marks")
        if not isinstance(marks, dict):
            continue
        judges = list(marks)
        for i, a in enumerate(judges):
            for b in judges[i + 1 :]:
                for criterion in marks[a].keys() & marks[b].keys():
                    pairs.setdefault((criterion, a, b), []).append((marks[a][criterion], marks[b][criterion]))
    made = []
    for (criterion, a, b), seen in sorted(pairs.items()):
        found = agreement(seen, levels)
        made.append([criterion, f"{a}, {b}", f"{len(seen):,}", f"{found['same']:.0%}", f"{found['kappa']:.2f}"])
    return made


def _contamination(folder: DistillRun, ledger: Ledger) -> Iterator[str]:
    """Yield, for each `decontaminate` step, a table of the rows dropped by benchmark."""
    for stage in folder.stages:
        if stage.kind != "decontaminate":
            continue
        found: dict[str, list[dict[str, Any]]] = {}
        for row in ledger.rows.ordered(stage.id, "dropped"):
            match = row.values.get("contamination")
            if isinstance(match, dict):
                found.setdefault(match["benchmark"], []).append(match)
        recipe = next(s for s in folder.about["recipe"]["steps"] if s.get("name", s["kind"]) == stage.name)
        rows = []
        for name in recipe["against"]:
            matches = found.get(name, [])
            items = {m["item"] for m in matches}
            whole = sum(m["coverage"] >= 0.95 for m in matches)
            mean = f"{sum(m['coverage'] for m in matches) / len(matches):.2f}" if matches else "-"
            rows.append([name, f"{len(matches):,}", f"{len(items):,}", f"{whole:,}", mean])
        yield f"<h2>Benchmarks: {html.escape(stage.name)}</h2>"
        yield table(["benchmark", "rows dropped", "different items", "nearly whole", "mean coverage"], rows)


def _origin(folder: DistillRun) -> Iterator[str]:
    about = folder.about
    rows = []
    for name, teacher in about["recipe"].get("teachers", {}).items():
        what = teacher.get("model") or teacher.get("checkpoint", "")
        rows.append(
            [name, what, teacher.get("licence", ""), teacher.get("terms", ""), teacher.get("authorisation", "")]
        )
    if rows:
        yield "<h2>Teachers</h2>" + table(["name", "model", "licence", "terms", "authorisation"], rows, 5)
    files = [[path, digest] for path, digest in about.get("inputs", {}).items()]
    if files:
        yield "<h2>Inputs</h2>" + table(["file", "sha256"], files, 2)
    said = ", ".join(f"{k} {v}" for k, v in (about.get("versions") or versions()).items())
    yield f"<h2>Recipe</h2><p>{html.escape(said)}; begun {html.escape(str(about.get('begun', '')))}.</p>"
    command = f"interlace distill generate {about.get('recipe_file', 'recipe.toml')} --out {folder.path}"
    yield f"<pre>{html.escape(command)}</pre><pre>{html.escape(tomli_w.dumps(about['recipe']))}</pre>"
