"""`interlace distill`: synthetic data from any teacher."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from interlace.cli.output import Meter, count, duration, err, print_json, print_table, say, size
from interlace.cli.values import Named, Place, Whole

if TYPE_CHECKING:
    from interlace.distill.run import Snapshot
    from interlace.runs.progress import Progress

HELP = """Make training data with a stronger model, or refine existing text with it.

A recipe names teachers and steps; every request is paid for once, whatever is edited, killed or started again.

    interlace distill generate recipes/distill-instructions/recipe.toml --dry-run

    interlace distill generate recipes/distill-instructions/recipe.toml --out runs/instructions

    interlace distill export runs/instructions --out data/instructions
"""

SAME_SECONDS = 60.0  # between plain lines that say the same

app = App(name="distill", help=HELP)
Flag = Annotated[bool, Parameter(negative="")]


@app.command
def generate(
    recipe: Place,
    *overrides: str,
    out: Place | None = None,
    limit: Whole | None = None,
    retry: str = "",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Run a recipe, or go on with it.

    Rows and requests are written as they come. Ctrl-C lets what is in flight finish; the same command goes on.

    Examples:

        interlace distill generate recipe.toml --dry-run

        interlace distill generate recipe.toml run.max_cost=2.5 --limit 20 --out runs/trial

        interlace distill generate recipe.toml --out runs/mine --retry failed,unparsable

    Parameters
    ----------
    recipe: Path
        A TOML file: `[run]`, `[teachers.NAME]`, `[[steps]]`, `[output]`; paths in it start from its folder.
    overrides: str
        Values laid over the recipe, as dotted.key=value.
    out: Path
        The run folder; runs/ and the recipe's name if not given.
    limit: int
        The most rows of every source: a trial, whose rows are kept apart and whose requests are not paid for again.
    retry: str
        States whose rows are done again with new requests: truncated, refused, unparsable, failed.
    dry_run: bool
        Print rows, requests, tokens and cost to expect, and send nothing.
    json: bool
        Print one JSON document at the end.
    """
    from interlace.base.errors import ConfigError, RunError
    from interlace.base.files import user_path
    from interlace.distill.run import generate as run

    if limit is not None and limit < 1:
        raise ConfigError(f"limit: must be at least 1, got {limit}")
    if dry_run:
        _print_estimate(recipe, overrides, limit, json)
        return
    stem = recipe.parent.name if recipe.stem == "recipe" and recipe.parent.name else recipe.stem
    out = user_path(out or Path("runs") / stem, RunError)
    states = [s.strip() for s in retry.split(",") if s.strip()]
    if not (out / "run.toml").is_file():  # it was said when the run was begun
        _say_estimate(recipe, overrides, limit)
    with Display() as display:
        document = run(recipe, out, overrides, limit=limit, retry=states, watch=display.update, say=display.say)
    if json:
        print_json(document)
        return
    _print_steps(document)
    said = f"Run: {out}    next: interlace distill export {out} --out DIR; interlace distill report {out}"
    say(said, whole=True)


@app.command
def logits(
    teacher: Named,
    *,
    data: Place,
    out: Place,
    kind: Literal["draws", "top_k", "hidden"] = "draws",
    amount: Whole | None = None,
    temperature: float = 1.0,
    seed: Whole = 0,
    part: str = "1/1",
    device: str = "cpu",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Keep what a teacher says of prepared data, for students that train by `[objective] kind = "distill"`.

    The teacher reads each document once. Its distribution over every next token is kept: as tokens that are drawn
    from it, which is unbiased; as the likeliest tokens, and the rest as one; or as the hidden state that its head
    reads, which is the whole distribution. Killed and started again, the same command goes on.

    Examples:

        interlace distill logits runs/teacher --data data/mine --out data/mine-logits

        interlace distill logits runs/teacher --data data/mine --out data/hidden --kind hidden --dry-run

        interlace distill logits runs/teacher --data data/mine --out data/mine-logits --part 2/4 --device cuda

    Parameters
    ----------
    teacher: str
        A checkpoint: a folder, or a hub id. It has the tokenizer of the data.
    data: Path
        A folder that `interlace data prepare` wrote, or the data folder of a run.
    out: Path
        The folder to make.
    kind: str
        draws, top_k or hidden.
    amount: int
        Draws for each token (32 if not given), or the number of likeliest tokens (50), at most 255.
    temperature: float
        Of the teacher's softmax; training names the same.
    seed: int
        Of the draws.
    part: str
        K/N: the K-th of N processes that share the work, on one machine or several with one folder.
    device: str
        Where the teacher computes: cpu, cuda, ...
    dry_run: bool
        Print what the cache would take, and write nothing.
    json: bool
        Print one JSON document.
    """
    from interlace.base.errors import ConfigError
    from interlace.base.files import user_path
    from interlace.base.schema import validate
    from interlace.model.device import check_device
    from interlace.train.cache.facts import AMOUNTS, Records
    from interlace.train.cache.write import Writer

    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", part)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"--part: must be K/N with K from 1 to N, such as 2/4, got {part!r}")
    check_device(device)
    given = {"kind": kind, "amount": AMOUNTS[kind] if amount is None else amount}
    writer = Writer(
        teacher, user_path(data), validate(Records, {**given, "temperature": temperature, "seed": seed}, ""), device
    )
    size_ = writer.size()
    document = {"records": size_.records, "bytes_per_record": size_.bytes_per_record, "bytes": size_.nbytes}
    if not json:
        say(f"{size_.records:,} tokens, {size_.bytes_per_record:.1f} bytes each: {size(size_.nbytes)}")
    if not dry_run:
        with Meter() as meter:
            document["written"] = writer.run(user_path(out), (int(found[1]) - 1, int(found[2])), meter.update)
    if json:
        print_json(document)
    elif not dry_run:
        say(f'{document["written"]:,} tokens written    next: objective.kind = "distill", objective.cache = "{out}"')


@app.command
def status(run: Place, *, json: Flag = False) -> None:
    """How far a run is: rows by step and state, why rows ended, what was spent. Works while it runs.

    Examples:

        interlace distill status runs/mine

        interlace distill status runs/mine --json

    Parameters
    ----------
    run: Path
        The run folder.
    json: bool
        Print one JSON document instead of tables.
    """
    from interlace.distill.run import status as read

    document = read(run)
    if json:
        print_json(document)
        return
    _print_steps(document)


@app.command
def export(run: Place, *, out: Place, parquet: bool = True, json: Flag = False) -> None:
    """Write conversations to train on, split by hash, as JSONL and Parquet, with a manifest.

    Examples:

        interlace distill export runs/mine --out data/mine

        interlace train recipe.toml data.source=data/mine/train.jsonl

    Parameters
    ----------
    run: Path
        The run folder; it need not be finished.
    out: Path
        A new folder, or one that an earlier export wrote.
    parquet: bool
        Write Parquet too.
    json: bool
        Print the manifest.
    """
    from interlace.distill.export import export as write

    with Meter() as meter:
        manifest = write(run, out, parquet=parquet, watch=meter.update)
    if json:
        print_json(manifest)
        return
    rows = [[name, f"{s['rows']:,}", f"{s['characters']:,}"] for name, s in manifest["splits"].items()]
    print_table(f"written to {out}", ["", "rows", "characters"], rows)
    for reason, number in manifest["left_out"].items():
        say(f"note: {number:,} rows left out: {reason}", console=err)
    if not manifest["finished"]:
        say("note: the run is not finished; export again when it is", console=err)


@app.command
def report(run: Place, *, out: Place | None = None, json: Flag = False) -> None:
    """Write report.html: what was made, what was dropped and why, samples to read, topics, and what it cost.

    Examples:

        interlace distill report runs/mine

        interlace distill report /archive/runs/mine --out mine.html

    Parameters
    ----------
    run: Path
        The run folder; it need not be finished.
    out: Path
        The file to write; report.html in the run folder if not given.
    json: bool
        Print the path as one JSON document.
    """
    from interlace.distill.report import report as write

    with Meter() as meter:
        path = write(run, meter.update, out)
    if json:
        print_json({"report": str(path)})
        return
    say(f"Report: {path}")


def _print_estimate(recipe: Path, overrides: tuple[str, ...], limit: int | None, json: bool) -> None:
    from dataclasses import asdict

    from interlace.distill.estimate import estimate
    from interlace.distill.recipe import read_recipe

    plan = read_recipe(recipe, overrides)
    found = estimate(plan, limit)
    total = {
        k: sum(getattr(e, k) for e in found) for k in ("requests", "prompt_tokens", "answer_tokens", "cost", "most")
    }
    if json:
        print_json({"steps": [asdict(e) for e in found], "total": total})
        return
    rows = []
    for e in found:
        asked = [f"{e.requests:,}", count(e.prompt_tokens), count(e.answer_tokens), _usd(e.cost), _usd(e.most)]
        rows.append([f"{e.step} ({e.kind})", f"{e.rows:,}", *(asked if e.requests else [""] * 5)])
    last = [f"{total['requests']:,}", count(total["prompt_tokens"]), count(total["answer_tokens"])]
    rows.append(["in all", "", *last, _usd(total["cost"]), _usd(total["most"])])
    columns = [
        "step",
        "rows, at most",
        "requests",
        "prompt tokens",
        "answer tokens, at most",
        "USD, about",
        "USD, at most",
    ]
    print_table("dry run: nothing was sent", columns, rows)
    say("About: answers of half of max_tokens; no row dropped, no retry.", style="dim")


def _say_estimate(recipe: Path, overrides: tuple[str, ...], limit: int | None) -> None:
    """One line before a run, where it asks anybody."""
    from interlace.distill.estimate import estimate
    from interlace.distill.recipe import read_recipe

    found = estimate(read_recipe(recipe, overrides), limit)
    requests = sum(e.requests for e in found)
    if requests:
        about, most = (_usd(sum(getattr(e, k) for e in found)) for k in ("cost", "most"))
        say(
            f"up to {requests:,} requests, about {about} USD, at most {most}; what is in the ledger is free",
            console=err,
        )


def _usd(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 else f"{value:.4f}"


def _print_steps(document: dict[str, Any]) -> None:
    states = list(dict.fromkeys(s for step in document["steps"] for s in step["rows"])) or ["ok"]
    rows = []
    for step in document["steps"]:
        rows.append(
            [
                f"{step['step']} ({step['kind']})" + ("" if step["done"] else " ..."),
                *(f"{step['rows'].get(s, 0):,}" for s in states),
                f"{step['requests']:,}" if step["requests"] else "",
                _usd(step["cost"]) if step["cost"] else "",
            ]
        )
    print_table("rows by step", ["step", *states, "requests", "USD"], rows)
    ended = [(s["step"], e) for s in document["steps"] for e in s["ended"]]
    shown = sorted(ended, key=lambda x: -x[1]["rows"])[:12]
    if shown:
        print_table(
            "why rows ended",
            ["step", "state", "reason", "rows"],
            [[step, e["state"], e["reason"][:90], f"{e['rows']:,}"] for step, e in shown],
            words=3,
        )
    spent = document["spent"]
    said = f"spent: {spent['requests']:,} requests, {spent['tokens']:,} tokens, {_usd(spent['cost'])} USD"
    if spent["lost_requests"]:
        lost = f"{spent['lost_requests']:,} requests without a usable answer"
        said += f"; perhaps charged too: {lost}, at most {_usd(spent['lost_cost'])} USD"
    say(said)


class Display:
    """A live table on a terminal, a plain line now and then elsewhere."""

    def __init__(self, every_seconds: float = 5.0):
        """every_seconds: between plain lines."""
        from rich.live import Live

        self._every, self._last = every_seconds, 0.0
        self._live = Live(console=err, refresh_per_second=4, transient=True) if err.is_terminal else None
        self._said: set[str] = set()
        self._before: tuple[Any, ...] = ()

    def __enter__(self) -> Display:
        """Start drawing."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        if self._live is not None:
            self._live.stop()

    def update(self, moment: Progress) -> None:
        """Show a snapshot."""
        now: Snapshot = moment.detail
        for wait in now.waits:
            if wait not in self._said:
                self._said.add(wait)
                self.say(wait)
        if self._live is not None:
            self._live.update(self._table(now))
            return
        passed = time.monotonic() - self._last
        tally = now.tally
        state = ([s["rows"] for s in now.steps], now.spent.tokens, dict(tally.by_state), tally.reused, now.waits)
        if now.finished or passed > (self._every if state != self._before else max(self._every, SAME_SECONDS)):
            self._last, self._before = time.monotonic(), state
            say(self._line(now), console=err)

    def say(self, text: str) -> None:
        """A line of its own, above the table."""
        say(text, console=err)

    def _line(self, now: Snapshot) -> str:
        steps = ", ".join(f"{s['step']} {s['rows'].get('ok', 0):,}" for s in now.steps)
        return f"{now.share:4.0%}  {steps}  |  {self._sums(now)}"

    @staticmethod
    def _sums(now: Snapshot) -> str:
        spent, tally = now.spent, now.tally
        parts = [
            f"{now.rows_per_second:,.1f} answers/s",
            f"{tally.in_flight} in flight",
            f"{count(spent.tokens)} tokens",
        ]
        limit = now.limits["cost"]
        if spent.cost or limit:
            of = f" of {_usd(limit)}" if limit else ""
            parts.append(f"{_usd(spent.cost)}{of} USD, {_usd(now.expected_cost)} expected")
        if tally.reused:
            parts.append(f"{tally.reused:,} from the ledger")
        if tally.limited:
            parts.append(f"{tally.limited:,} sent back for rate limits")
        parts += [f"{n:,} x {kind}" for kind, n in tally.errors.most_common(3)]
        if now.seconds_left is not None:
            parts.append(f"{duration(now.seconds_left)} left")
        return "  ".join(parts)

    def _table(self, now: Snapshot) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        states = list(dict.fromkeys(["ok", *(s for step in now.steps for s in step["rows"])]))
        for name in ("step", *states):
            table.add_column(name, justify="left" if name == "step" else "right")
        for step in now.steps:
            table.add_row(step["step"], *(f"{step['rows'].get(s, 0):,}" for s in states))
        return Group(table, Text(f"{now.share:4.0%}  {self._sums(now)}"))
