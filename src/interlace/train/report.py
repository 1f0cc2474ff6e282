"""report.html of a training run: one file, its picture inside, nothing fetched from elsewhere."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from interlace.base.errors import ConfigError, DataError, RunError
from interlace.base.files import disk_errors, read_json, user_path, write_file
from interlace.base.schema import validate
from interlace.data.prepare import MANIFEST
from interlace.data.tokens import check_manifest
from interlace.model.config import ModelConfig
from interlace.model.sizes import sizes
from interlace.runs.folder import NOT_CONFIG
from interlace.runs.page import origin, page, picture, table, visible
from interlace.runs.training import TrainingRun
from interlace.train.recipe import Recipe

PALETTE = ("#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#b91c1c", "#0e7490", "#a16207", "#4d4d4d")
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
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(10, 4), dpi=110)
    figure.subplots_adjust(
        left=0.07, right=0.99, bottom=0.13, top=0.96, wspace=0.18
    )  # to find them takes as long as all
    left, right = figure.subplots(1, 2)
    for axis, curves, label in (
        (left, training, "training loss, nats per token"),
        (right, held_out, "held-out bits per byte"),
    ):
        for number, (name, (x, y)) in enumerate(curves.items()):
            colour = COLOURS.get(name, PALETTE[number % len(PALETTE)])
            axis.plot(x, y, label=name, color=colour, linewidth=1.6, marker="o" if axis is right else "", markersize=3)
        axis.set_xlabel("tokens")
        axis.set_ylabel(label)
        axis.locator_params(axis="x", nbins=6)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, loc="upper right")  # losses fall
    if mark is not None:
        tokens, level, label = mark
        right.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        right.axvline(tokens, color="#999999", linewidth=0.8, linestyle="--")
        right.annotate(label, (tokens, level), (-6, -13), textcoords="offset points", ha="right", fontsize=9)
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    return raw.getvalue()


def smooth(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Return an exponential moving average, without the bias of its start."""
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed


def curves(run: TrainingRun, score: str = "held_out_bits_per_byte") -> tuple[Curve, Curve]:
    """Return (training loss, smoothed; the metric called `score`) of a run, each against tokens."""
    rows = list(run.metrics())
    scored = [m for m in rows if score in m]
    steps = [m for m in rows if "loss" in m]  # a divergence has none
    loss = ([m["tokens"] for m in steps], smooth([m["loss"] for m in steps]))
    return loss, ([m["tokens"] for m in scored], [m[score] for m in scored])


SAMPLES = "samples.json"
WRITTEN = "samples.jsonl"  # after the recipe's own prompts, at each evaluation
TASKS = "tasks."  # before the names of tasks in a line of metrics.jsonl


def write_report(run: TrainingRun) -> Path:
    """Write loss.png and report.html in a run folder; return the report's path. Everything is read from the folder.

    Raises:
        RunError, DataError: a file of it is damaged.
    """
    tables = run.tables()
    config = {key: table for key, table in tables.items() if key not in NOT_CONFIG}
    try:
        validate(Recipe, config, "")
    except ConfigError as error:
        raise RunError(f"{run.file}: is not a run's: {error}; put it back") from None
    loss, score = curves(run)
    png = loss_plot({"model": loss}, {"model": score}, None)
    write_file(run.path / "loss.png", png)
    sections = [f'<p class="lead">{html.escape(lead(run, config))}</p>', picture(png, "loss curves")]
    if score[0]:
        rows = [[f"{t:,.0f}", f"{b:.4f}"] for t, b in zip(*score, strict=True)]
        sections.append(table(["tokens", "held-out bits per byte"], rows))
    sections.append(f"<p>{html.escape(about_text(run, config))}</p>")
    sections += watched(run)
    if samples := read_samples(run):
        shown = "".join(f"<p>After {html.escape(repr(p))}:</p><pre>{html.escape(t)}</pre>" for p, t in samples)
        sections.append(f"<h2>Samples</h2>{shown}")
    made = origin(f"interlace train RECIPE --out {run.path}", tables.get("versions", {}), tables.get("machine", {}))
    sections += [made, f"<h2>Recipe</h2><pre>{html.escape(tomli_w.dumps(config))}</pre>"]
    write_file(run.path / "report.html", page(f"interlace run: {run.path.name}", sections))
    return run.path / "report.html"


def lead(run: TrainingRun, config: Mapping[str, Any]) -> str:
    """Say in a sentence or two what a run came to."""
    rows = list(run.metrics())
    steps = [m for m in rows if "loss" in m]
    size = sizes(ModelConfig.from_dict(config["model"]), ())
    parameters = f"{size.total:,} parameters, {size.non_embedding:,} without embeddings."
    if not steps:
        return f"Nothing was trained yet. {parameters}"
    last = steps[-1]
    seconds = sum(m.get("seconds", 0.0) for m in rows)
    rate = last["tokens"] / seconds if seconds else last["tokens_per_second"]
    done = f"{last['tokens']:,} tokens ({last['step']:,} steps, {seconds:,.0f} s, {rate:,.0f} tokens/s)"
    scored = [m["held_out_bits_per_byte"] for m in rows if "held_out_bits_per_byte" in m]
    said = f"{scored[-1]:.3f} held-out bits per byte after {done}" if scored else f"{done}, not scored yet"
    wanted = -(-config["train"]["tokens"] // (config["data"]["rows"] * config["data"]["length"]))
    done_steps = rows[-1]["step"]  # the last ones may have changed no weight
    if diverged := next((m["diverged"] for m in rows if "diverged" in m), ""):
        said = f"The run diverged: {diverged}. Before that: {said}"
    elif done_steps < wanted:
        said = f"Not finished: step {done_steps:,} of {wanted:,}. {said}"
    return f"{said}. {parameters}"


def about_text(run: TrainingRun, config: Mapping[str, Any]) -> str:
    """Return HTML on the text that a run was trained on."""
    if mixture := config["data"].get("mixture"):
        whole = sum(one["weight"] for one in mixture.values())
        said = [f"{name} ({one['weight'] / whole:.0%}): {', '.join(one['source'])}" for name, one in mixture.items()]
        return f"Text: a mixture of {'; '.join(said)}."
    source = ", ".join(config["data"]["source"])
    manifests = [run.path / "data" / MANIFEST, *(user_path(p) / MANIFEST for p in config["data"]["source"])]
    file = next((m for m in manifests if m.is_file()), None)
    if file is None:
        return f"Text: {source}."
    manifest = read_json(file, "the manifest of a prepared folder")
    check_manifest(file, manifest)
    train, held = (manifest["splits"][name] for name in ("train", "held_out"))
    return (
        f"Text: {source}; {train['documents']:,} documents ({train['tokens']:,} tokens) to train on, "
        f"{held['documents']:,} documents ({held['tokens']:,} tokens) held out; a tokenizer of "
        f"{manifest['tokenizer']['vocabulary']:,} ids (sha256 {manifest['tokenizer']['sha256'][:16]})."
    )


def watched(run: TrainingRun) -> list[str]:
    """Return HTML on the tasks that were asked, and on what was written after the recipe's prompts."""
    found: list[str] = []
    rows = [row for row in run.metrics() if any(key.startswith(TASKS) for key in row)]
    names = [key for row in rows[-1:] for key in row if key.startswith(TASKS)]
    if pairs := [row for row in run.metrics() if "held_out_wins" in row]:
        found.append("<h2>Held-out pairs</h2><p>Won: the better answer is preferred more than by the reference.</p>")
        columns = ["step", "won", "lost", "margin", "loss"]
        keys = ("held_out_wins", "held_out_losses", "held_out_margin", "held_out_loss")
        found.append(table(columns, [[f"{row['step']:,}", *(f"{row[k]:,.4g}" for k in keys)] for row in pairs]))
    if rows:
        found.append("<h2>Tasks</h2><p>Won and lost: items beside the model that the run started from.</p>")
        columns = ["step", *(name.removeprefix(TASKS).replace("_", " ") for name in names)]
        found.append(table(columns, [[f"{row['step']:,}", *(f"{row.get(n, 0):,.4g}" for n in names)] for row in rows]))
    if written := read_written(run):
        last = max(row["step"] for row in written)
        shown = []
        for prompt in dict.fromkeys(row["prompt"] for row in written):
            own = [row for row in written if row["prompt"] == prompt]
            picked = [own[0], own[-1]] if own[0]["step"] != last else own[-1:]
            texts = "".join(
                f"<p>Step {row['step']:,}:</p><pre>{html.escape(visible(row['text']))}</pre>" for row in picked
            )
            shown.append(f"<p>After {html.escape(repr(prompt))}:</p>{texts}")
        found.append(f"<h2>Written on the way</h2>{''.join(shown)}")
    return found


def read_written(run: TrainingRun) -> list[dict[str, Any]]:
    """Return {"step", "prompt", "text"} of what the model wrote after the recipe's prompts.

    Raises:
        DataError: the file is damaged.
    """
    file = run.path / WRITTEN
    if not file.is_file():
        return []
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [{"step": int(r["step"]), "prompt": str(r["prompt"]), "text": str(r["text"])} for r in rows]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file}: is damaged; remove it") from None


def read_samples(run: TrainingRun) -> list[tuple[str, str]]:
    """Return (prompt, text) of what the model wrote at the end, as far as it was stored.

    Raises:
        DataError: the file is damaged.
    """
    file = run.path / SAMPLES
    if not file.is_file():
        return []
    found = read_json(file, "the samples of a run")
    try:
        return [(str(s["prompt"]), visible(str(s["text"]))) for s in found]
    except (LookupError, TypeError):
        raise DataError(f"{file}: is damaged: not a list of prompts and texts; remove it") from None


def compare(runs: Mapping[str, TrainingRun], out: Path, command: str, refresh_seconds: float = 0.0) -> list[list[str]]:
    """Write one page on several runs: their curves in one picture, and a table, whose rows are returned.

    Everything is read from the run folders, which may still be trained. The picture is written beside the page.

    Args:
        runs: by the names under which they are shown.
        out: the page, an HTML file.
        refresh_seconds: after which a browser reads the page again; 0 for never.

    Raises:
        RunError: a folder holds no run of training, or is damaged.
    """
    losses, scores, rows = {}, {}, []
    for name, run in runs.items():
        found = list(run.metrics())
        steps = [m for m in found if "loss" in m]
        losses[name], scores[name] = curves(run)
        config = run.config()
        size = sizes(ModelConfig.from_dict(config["model"]), ())
        last = steps[-1] if steps else {}
        seconds = sum(m.get("seconds", 0.0) for m in found)
        rows.append(
            [
                name,
                f"{size.total:,}",
                f"{last.get('tokens', 0):,}",
                f"{losses[name][1][-1]:.4f}" if steps else "",
                f"{scores[name][1][-1]:.4f}" if scores[name][0] else "",
                f"{min(scores[name][1]):.4f}" if scores[name][0] else "",
                f"{last['tokens'] / seconds:,.0f}" if steps and seconds else "",
                str(sum("skipped" in m for m in found)),
            ]
        )
    png = loss_plot(losses, scores, None)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out.with_suffix(".png"), png)
    again = f'<meta http-equiv="refresh" content="{refresh_seconds:.0f}">' if refresh_seconds else ""
    made = f"<p><code>{html.escape(command)}</code></p>"
    write_file(out, page("interlace runs", [again, picture(png, "loss curves"), table(COMPARED, rows), made]))
    return rows


COMPARED = [
    "run",
    "parameters",
    "tokens",
    "loss, smoothed",
    "held-out bits/byte",
    "lowest bits/byte",
    "tokens/s",
    "skipped steps",
]
