"""`interlace report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import print_json, print_table, say
from interlace.cli.values import Place


def report(
    *runs: Place,
    out: Place = Path("report.html"),
    watch: Annotated[bool, Parameter(negative="")] = False,
    every_seconds: float = 10.0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Compare any runs of training on one page: their curves against tokens, and a table.

    Examples:

        interlace report runs/mine runs/slower --out compared.html

        interlace report runs/* --watch

    Parameters
    ----------
    runs: Path
        Run folders, also while they are trained; of a run in stages, its stages.
    out: Path
        The page to write; its picture is written beside it.
    watch: bool
        Write the page again and again until Ctrl-C; a browser that shows it keeps up.
    every_seconds: float
        How often.
    json: bool
        Print the table as one JSON document.
    """
    import time

    from interlace.base.errors import RunError
    from interlace.base.files import user_path
    from interlace.runs.training import TrainingRun
    from interlace.train.report import COMPARED, compare

    if not runs:
        raise RunError("RUN: required, and not given; name run folders")
    if not 1 <= every_seconds < 1e6:
        raise RunError(f"--every-seconds: must lie from 1 to 1,000,000, got {every_seconds}")
    if watch and json:
        raise RunError("--json: is for one table; leave --watch out")
    if out.suffix == ".png":
        raise RunError(f"--out: {out} is the picture's name; name a page, such as {out.with_suffix('.html')}")
    found: dict[str, TrainingRun] = {}
    for given in runs:
        folder = user_path(given, RunError)
        inner = [p for p in sorted(folder.iterdir()) if (p / "run.toml").is_file()] if folder.is_dir() else []
        for path in [folder] if (folder / "run.toml").is_file() or not inner else inner:
            if not (path / "run.toml").is_file():
                raise RunError(f"{path}: is no run folder; name one that `interlace train` made")
            name = str(path) if path.name in found else path.name
            found[name] = TrainingRun(path)
    out = user_path(out, RunError)
    words = " ".join(["interlace report", *map(str, runs)])
    rows = compare(found, out, words, every_seconds if watch else 0)
    while watch:
        say(f"{out}: written; Ctrl-C ends")
        time.sleep(every_seconds)
        compare(found, out, words, every_seconds)
    if json:
        print_json({"page": str(out), "runs": [dict(zip(COMPARED, row, strict=True)) for row in rows]})
        return
    print_table("runs", COMPARED, rows)
    say(f"Page: {out}")
