"""The results of the comparison for a reader: the same rows in the terminal and on the page."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import tomli_w

from interlace.base.files import write_file
from interlace.model.device import facts
from interlace.runs.page import origin, page, picture, table
from interlace.runs.training import TrainingRun
from interlace.study.quickstart.plan import NAMES
from interlace.train.report import curves, loss_plot


def kibibytes(value: float) -> str:
    """Return bytes as text in KiB or MiB."""
    return f"{value / 1024:,.0f} KiB" if value < 1 << 20 else f"{value / (1 << 20):,.1f} MiB"


def comparison(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table, with one column for each model."""
    models = [results["models"][name] for name in NAMES]

    def row(label: str, *cells: str) -> list[str]:
        return [label, *cells]

    rows = [
        row("parameters", *(f"{m['parameters']:,}" for m in models)),
        row("  without embeddings", *(f"{m['non_embedding_parameters']:,}" for m in models)),
        row(_rates(results), *(f"{m['learning_rate']:g}" for m in models)),
        row("tokens trained on", *(f"{m['tokens']:,}" for m in models)),
        row("held-out bits per byte", *(f"{m['held_out_bits_per_byte']:.3f}" for m in models)),
        row("training tokens/s", *(f"{m['tokens_per_second']:,.0f}" for m in models)),
    ]
    for context in models[0]["state_and_cache_bytes"]:
        cells = (kibibytes(m["state_and_cache_bytes"][context]) for m in models)
        rows.append(row(f"state and cache at {int(context) // 1024}k tokens", *cells))
    return ["", *NAMES], rows


def _rates(results: dict[str, Any]) -> str:
    tried = len(results["learning_rates"]["tried"])
    return f"learning rate, best of {['', 'one', 'two', 'three'][tried]}" if tried else "learning rate, not searched"


def _search(results: dict[str, Any]) -> str:
    tried = len(results["learning_rates"]["tried"])
    if not tried:
        return "there was no time to try learning rates, so that each had the middle one"
    return (
        f"each had the same {tried} learning rates tried on a prefix ({results['sweep_tokens_per_model']:,} tokens per "
        "model), and kept its better one"
    )


def sentence(results: dict[str, Any]) -> str:
    """Say who won and by how many tokens, or why no winner is named."""
    winner, loser, models = results["winner"], results["loser"], results["models"]
    if winner is None:
        tokens = models[NAMES[0]]["tokens"]
        searched = "" if results["learning_rates"]["tried"] else ", at one learning rate"
        return (
            f"No winner is named after {tokens:,} tokens for each model{searched}: at least "
            f"{results['least_tokens']:,} and a search for the rate are needed; try --minutes "
            f"{results['least_minutes']}"
        )
    scores = [models[n]["held_out_bits_per_byte"] for n in (winner, loser)]
    first = f"The {winner} won: {scores[0]:.3f} against {scores[1]:.3f} held-out bits per byte after the same tokens."
    if results["token_ratio"] is None:
        return first
    return (
        f"{first} It reached the {loser}'s final score with {results['tokens_needed']:,.0f} tokens instead of "
        f"{results['tokens_of_loser']:,}: {results['token_ratio']:.2f} times fewer, one seed."
    )


def next_commands(out: Path, results: dict[str, Any]) -> list[str]:
    """Return commands to type next."""
    winner = out / (results["winner"] or "hybrid")
    return [
        f'interlace generate {winner} "def parse(" --max-tokens 100',
        f"interlace inspect {out / 'hybrid'}",
        "interlace recipes hybrid-small",
        f"interlace train hybrid-small.toml data.source={out / 'data'} model.vocabulary=4096 --dry-run",
    ]


def _made(out: Path, runs: dict[str, TrainingRun]) -> list[str]:
    """Return HTML with command, versions, machine and both models' configs."""
    tables = TrainingRun(out).tables()
    minutes = tables.get("quickstart", {}).get("minutes", "")
    machine = machine_of(tables)
    command = f"interlace quickstart --minutes {minutes} --out {out}"
    if (device := machine.get("device", "cpu")) != "cpu":
        command += f" --device {device}"
    made = origin(command, tables.get("versions", {}), machine)
    models = {name: run.config().get("model", {}) for name, run in runs.items() if run.file.is_file()}
    return [made, f"<h2>Models</h2><pre>{html.escape(tomli_w.dumps(models))}</pre>"]


def machine_of(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the machine that run.toml names; this one if it was written before machines were recorded."""
    found: dict[str, Any] = tables.get("machine") or facts("cpu")
    return found


def write_report(out: Path, results: dict[str, Any], runs: dict[str, TrainingRun]) -> None:
    """Write loss.png and report.html."""
    training, held = {}, {}
    for name in NAMES:
        training[name], held[name] = curves(runs[name], "held_out_curve")
    mark = None
    if results["token_ratio"] is not None:
        level = held[results["loser"]][1][-1]
        mark = (results["tokens_needed"], level, f"{results['token_ratio']:.2f}x fewer tokens")
    png = loss_plot(training, held, mark)
    write_file(out / "loss.png", png)
    text = results["text"]
    about = (
        f"Text: {text['train']['documents']:,} documents ({text['train']['tokens']:,} tokens) to train on, "
        f"{text['held_out']['documents']:,} whole documents held out. Both models saw the same batches in the same "
        f"order; {_search(results)}. Scores on the curve are of a part of the held-out text, those in the table of "
        "more of it."
    )
    samples = "".join(f"<h3>{name}</h3><pre>{html.escape(results['models'][name]['sample'])}</pre>" for name in NAMES)
    commands = html.escape("\n".join(next_commands(out, results)))
    sections = [
        f'<p class="lead">{html.escape(sentence(results))}</p>',
        table(*comparison(results)),
        picture(png, "training loss and held-out bits per byte of both models against tokens"),
        f"<p>{html.escape(about)}</p>",
        f"<h2>Samples</h2>{samples}<h2>Next</h2><pre>{commands}</pre>",
        *_made(out, runs),
    ]
    write_file(out / "report.html", page("A hybrid and a transformer, side by side", sections))
