"""`interlace study`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from interlace.cli.output import Meter, err, print_json, print_table, say
from interlace.cli.output import out as console
from interlace.cli.values import Place, Whole

app = App(name="study", help="Comparisons that can be repeated: formal tasks, ladders, scaling laws.")
VERBS = {  # the first lines of their own help, so that nothing is imported to list them
    "ladder": "Train sizes x architectures x seeds of equal capacity, each run to several horizons, for a scaling law.",
    "fit": "Fit L = E + A / N^alpha + B / D^beta, say how sure each coefficient is, and what one architecture saves.",
    "report": "Write report.html, one file that holds all that `fit` finds, and its figures as PNG and PDF.",
}
for _verb, _words in VERBS.items():
    app.command(f"interlace.cli.study_{'ladder' if _verb == 'ladder' else 'fit'}:{_verb}", name=_verb, help=_words)


@app.command
def tasks(
    *,
    suite: str | None = None,
    tasks: str | None = None,
    models: str | None = None,
    seeds: Whole | None = None,
    first_seed: Whole = 0,
    steps: Whole | None = None,
    jobs: Whole | None = None,
    device: str = "cpu",
    out: Place = Path("runs/tasks"),
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train small models on formal tasks, several seeds each, and compare what they can learn and carry further.

    Interrupted and started again with the same --out, it goes on cell by cell.

    Examples:

        interlace study tasks --suite quick

        interlace study tasks --tasks parity,s3 --models transformer,gated_delta,mamba2,lstm --seeds 5 --out runs/s3

    Parameters
    ----------
    suite: str
        quick, state_tracking, state_recall or paper: their tasks, models, sizes and budgets.
    tasks: str
        Tasks by name, with commas; docs/tasks.md shows them all. In the place of the suite's.
    models: str
        Models by name (transformer, gated_delta, gated_delta_positive, hybrid, mamba2, ...), or TOML files with a
        [model] table, with commas.
    seeds: int
        How many seeds each; learning rates are tried with the first.
    first_seed: int
        The first of them.
    steps: int
        Training steps of every cell, in the place of the task's own.
    jobs: int
        Cells at once, one thread each; as many as there are cores if not given.
    device: str
        That the cells train on: "cpu" or "cuda".
    out: Path
        The folder for cells, plots, results.json and report.html.
    json: bool
        Print the results as one JSON document.
    """
    from dataclasses import replace

    from interlace.base.errors import ConfigError, RunError
    from interlace.base.files import user_path
    from interlace.model.device import check_device
    from interlace.study.tasks.grid import TaskGrid
    from interlace.study.tasks.registry import task
    from interlace.study.tasks.report import columns, rows, sentence, write_report
    from interlace.study.tasks.suites import ARMS, SUITES, Suite
    from interlace.study.tasks.suites import suite as find

    check_device(device)
    if suite is None and tasks is None:
        raise ConfigError(f"--suite or --tasks: one is required; suites: {', '.join(SUITES)}")
    plan = Suite((), ARMS, 3, "") if suite is None else find(suite)
    names = tuple(tasks.split(",")) if tasks is not None else plan.tasks
    for name in names:
        task(name)
    settings = {name: plan.setting(name) for name in names}
    if steps is not None:
        if steps < 1:
            raise ConfigError(f"steps: must be at least 1, got {steps}")
        settings = {n: (s, replace(b, steps=steps)) for n, (s, b) in settings.items()}
    chosen = tuple(models.split(",")) if models is not None else plan.models
    out = user_path(out, RunError)
    if plan.about:
        say(plan.about, style="dim", console=err)
    with Meter() as meter:
        count = plan.seeds if seeds is None else seeds
        results = TaskGrid(out, settings, chosen, count, first_seed, jobs, device, meter.update).run()
    report = write_report(out, results, " ".join(["interlace", *sys.argv[1:]]))
    if json:
        print_json(results)
        return
    for name, found in results["tasks"].items():
        print_table(name, columns(found), rows(found))
        say(sentence(name, found), style="bold")
        console.print()
    say("Medians over seeds; * beyond training; solved: at least 0.95 at the hardest trained.", style="dim")
    say(f"Report: {report}")
