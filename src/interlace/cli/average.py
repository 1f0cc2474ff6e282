"""`interlace average`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import Meter, print_json, print_table
from interlace.cli.values import Named, Place


def average(
    *checkpoints: Named,
    out: Place,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the mean of the weights of several checkpoints of one model.

    Examples:

        interlace average runs/mine/checkpoints/step-900 runs/mine/checkpoints/step-1000 --out runs/mean

        interlace average runs/seed-1 runs/seed-2 runs/seed-3 --out runs/soup

    Parameters
    ----------
    checkpoints: str
        Checkpoints, run folders (their newest checkpoints) or hub ids; at least two.
    out: Path
        The folder to write.
    json: bool
        Print one JSON document.
    """
    from interlace.base.errors import CheckpointError
    from interlace.base.files import check_new, user_path
    from interlace.checkpoint.average import average as run
    from interlace.runs.progress import Progress

    out = user_path(out, CheckpointError)
    check_new(out, CheckpointError)
    with Meter() as meter:
        model = run(checkpoints, out, lambda done: meter.update(Progress("reading", done, len(checkpoints))))
    total = sum(p.numel() for p in model.parameters())
    document = {"out": str(out), "checkpoints": list(checkpoints), "parameters": total}
    if json:
        print_json(document)
        return
    print_table(
        "average", ["", ""], [["checkpoints", str(len(checkpoints))], ["parameters", f"{total:,}"], ["out", str(out)]]
    )
