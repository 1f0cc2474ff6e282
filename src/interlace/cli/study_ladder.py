"""`interlace study ladder`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from interlace.cli.output import Meter, count, duration, print_json, print_table, say, size
from interlace.cli.values import Place, Whole


def ladder(
    file: Place,
    *overrides: str,
    out: Place | None = None,
    jobs: Whole | None = None,
    device: str = "cpu",
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    emit: Literal["slurm", "local"] | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train sizes x architectures x seeds of equal capacity, each run to several horizons, for a scaling law.

    Every architecture's free dimension is solved for, so that models of one size have equally many parameters. Learning
    rates are tried on the smallest sizes. Killed and started again, the same command goes on.

    Examples:

        interlace study ladder recipes/ladder-small.toml --dry-run

        interlace study ladder recipes/ladder-small.toml ladder.seeds=5 data.source=texts/ --out runs/ladder

        interlace study ladder recipes/ladder-small.toml --out runs/ladder --emit slurm

    Parameters
    ----------
    file: Path
        A TOML file with tables `[ladder]`, `[rate]`, `[sizes.NAME]` and `[architectures.NAME]`, and `[data]`,
        `[train]`, `[model]` for what all have in common; docs/studies.md has one with comments.
    overrides: str
        Values laid over the file, as dotted.key=value.
    out: Path
        The folder; runs/FILE if not given.
    jobs: int
        Runs at once, one thread each; as many as there are cores if not given.
    device: str
        That the runs train on: "cpu" or "cuda".
    dry_run: bool
        Print models, FLOPs, memory and estimated time, and run nothing but a few timed steps.
    emit: str
        Run nothing; write a job array ("slurm") or a script for this machine ("local"), one run a line. Rates come
        first; when those runs are done the same command writes the rest, and at last gathers results.csv.
    json: bool
        Print one JSON document instead of tables.
    """
    from interlace.base.errors import RunError
    from interlace.base.files import user_path
    from interlace.model.device import check_device
    from interlace.study.ladder.estimate import costs, to_dict
    from interlace.study.ladder.plan import read_ladder
    from interlace.study.ladder.run import LadderRun

    check_device(device)
    plan = read_ladder(file, overrides)
    folder = user_path(out or Path("runs") / file.stem, RunError)
    command = " ".join(["interlace", *sys.argv[1:]])
    with Meter() as meter:
        run = LadderRun(plan, folder, jobs, device, meter.update)
        if dry_run:
            run.check()
            document = to_dict(plan, costs(plan), run.processes)
            if json:
                print_json(document)
            else:
                _print_costs(plan, document)
            return
        if not json and emit is None:
            _print_models(plan)
        if emit is not None:
            script, jobs_left = run.emit(emit, command)
            results: Any = {"script": str(script), "runs": jobs_left}
        else:
            results = {"results": str(run.run(command))}
    if json:
        print_json(results)
    elif emit is None:
        say(f"Results: {results['results']}. Next: interlace study report {folder}", whole=True)
    elif jobs_left:
        start = "sbatch" if emit == "slurm" else "bash"
        say(f"{jobs_left} runs can be started: {start} {script}; then give this command again", whole=True)
    else:
        say(f"Nothing is left to run. Next: interlace study report {folder}", whole=True)


def _print_models(plan: Any) -> None:
    from interlace.study.ladder.estimate import rung_columns, rung_rows

    print_table(f"models, matched in {plan.settings.match}", rung_columns(), rung_rows(plan), words=2)


def _print_costs(plan: Any, document: dict[str, Any]) -> None:
    _print_models(plan)
    rows = [
        [
            c["size"],
            c["arch"],
            count(c["flops"]),
            size(c["memory_bytes"]),
            duration(c["seconds"]) + ("" if c["timed"] else " *"),
        ]
        for c in document["rungs"]
    ]
    print_table("one run of each", ["size", "architecture", "FLOPs", "memory", "time, one core"], rows, words=2)
    if not all(c["timed"] for c in document["rungs"]):
        say("* estimated from FLOPs; the others from a few timed steps", style="dim")
    say(
        f"{document['runs']} runs, {count(document['tokens'])} tokens, {count(document['flops'])}FLOPs; about "
        f"{duration(document['seconds'])} with {document['jobs']} at once. Nothing was started.",
        style="bold",
    )
