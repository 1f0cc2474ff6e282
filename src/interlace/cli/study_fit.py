"""`interlace study fit` and `interlace study report`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from interlace.cli.output import Meter, err, print_json, print_table, say
from interlace.cli.values import Place, Whole

if TYPE_CHECKING:
    from interlace.study.scaling.study import Study


@Parameter(name="*")
@dataclass
class How:
    """How to fit.

    Parameters
    ----------
    share: str
        Coefficients that all architectures have in common, with commas, such as alpha,beta.
    alpha: float
        The exponent of N where it is known, and not to be fitted.
    beta: float
        The exponent of D where it is known.
    base: str
        The architecture that the others are held against; the first if not given.
    sizes: str
        More parameter counts at which to tell savings, with commas, such as 1e9,7e9.
    tokens_per_parameter: float
        Where the base's loss is taken; its largest if not given.
    bootstrap: int
        Resamples for each interval; 0 for no intervals.
    delta: float
        Where Huber's loss turns from squares to lines, in log loss.
    seed: int
        Of the resampling.
    """

    share: str = ""
    alpha: float | None = None
    beta: float | None = None
    base: str | None = None
    sizes: str = ""
    tokens_per_parameter: float | None = None
    bootstrap: Whole = 1000
    delta: float = 1e-3
    seed: Whole = 0


HOW = How()


def fit(results: Place, *, how: How = HOW, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Fit L = E + A / N^alpha + B / D^beta, say how sure each coefficient is, and what one architecture saves.

    Examples:

        interlace study fit runs/ladder

        interlace study fit points.csv --share alpha,beta --sizes 1e9,7e9 --json

    Parameters
    ----------
    results: Path
        A CSV file with columns N, D and loss, and any of run, seed, arch, flops, diverged; or a ladder's folder.
    json: bool
        Print one JSON document instead of tables.
    """
    found = _study(results, how)
    if json:
        print_json(found.to_dict())
        return
    _print(found)


def report(
    results: Place,
    *,
    out: Place | None = None,
    how: How = HOW,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write report.html, one file that holds all that `fit` finds, and its figures as PNG and PDF.

    Examples:

        interlace study report runs/ladder

        interlace study report points.csv --share alpha,beta --out reports/points

    Parameters
    ----------
    results: Path
        A CSV file, or a ladder's folder.
    out: Path
        The folder to write to; the ladder's folder, or one named like the CSV file, if not given.
    json: bool
        Print the path and the sentences as one JSON document.
    """
    from interlace.base.errors import RunError
    from interlace.base.files import user_path
    from interlace.study.scaling.report import write_report

    found = _study(results, how)
    beside = results if results.is_dir() else results.with_suffix("" if results.suffix else ".report")
    out = user_path(out, RunError) if out else beside
    commands: list[str] = [" ".join(["interlace", *sys.argv[1:]])]
    before: list[str] = []
    if results.is_dir():
        from interlace.study.ladder.gather import about

        made, before = about(results)
        commands = [*made, *commands]
    path = write_report(out, found, commands, before)
    if json:
        print_json({"report": str(path), "sentences": found.sentences, "notes": found.notes})
        return
    for sentence in found.sentences:
        say(sentence, style="bold")
    for note in found.notes:
        say(f"note: {note}", console=err)
    say(f"Report: {path}")


def _study(results: Path, how: How) -> Study:
    from interlace.base.errors import ConfigError
    from interlace.study.scaling.source import read_points
    from interlace.study.scaling.study import study

    points, _ = read_points(results)
    fixed = {k: v for k, v in (("alpha", how.alpha), ("beta", how.beta)) if v is not None}
    try:
        sizes = [float(s) for s in how.sizes.split(",") if s]
    except ValueError:
        raise ConfigError(f"sizes: {how.sizes!r} must be numbers with commas, such as 1e9,7e9") from None
    if any(not 0 < s < float("inf") for s in sizes):
        raise ConfigError(f"sizes: must be positive parameter counts, got {how.sizes!r}")
    if how.tokens_per_parameter is not None and not 0 < how.tokens_per_parameter < float("inf"):
        raise ConfigError(f"tokens_per_parameter: must be positive, got {how.tokens_per_parameter}")
    with Meter() as meter:
        return study(
            points,
            shared=[s.strip() for s in how.share.split(",") if s.strip()],
            fixed=fixed,
            base=how.base,
            sizes=sizes,
            tokens_per_parameter=how.tokens_per_parameter,
            times=how.bootstrap,
            delta=how.delta,
            seed=how.seed,
            watch=meter.update,
        )


def _print(found: Study) -> None:
    from interlace.study.scaling import report as tables

    print_table("L = E + A / N^alpha + B / D^beta, with 95 % intervals", *tables.coefficient_rows(found))
    say(found.optimum, style="dim")
    if found.savings:
        print_table(
            "tokens and FLOPs saved at equal loss: factors, with 95 % intervals", *tables.saving_rows(found.savings, 1)
        )
    if found.nested:
        print_table("what the architectures have in common", *tables.nested_rows(found.nested))
    if found.held_out:
        print_table("the largest size, predicted from the others", *tables.held_out_rows(found.held_out))
    print_table("exponent of the best size in the compute", *tables.split_rows(found))
    for sentence in found.sentences:
        say(sentence, style="bold")
    for note in found.notes:
        say(f"note: {note}", console=err)
