"""`interlace replay`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import Meter, print_json, print_table, say
from interlace.cli.values import Place, Whole


def replay(
    run: Place,
    *,
    step: Whole,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Take one step of a run again, by itself, and name the first layer with a NaN or an infinity.

    The run is left as it is: steps from the checkpoint before are taken in memory.

    Example:

        interlace replay runs/mine --step 1207

    Parameters
    ----------
    run: Path
        A run folder.
    step: int
        The step, as metrics.jsonl counts them.
    device: str
        "cpu", or "cuda".
    json: bool
        Print one JSON document.
    """
    from interlace.model.device import check_device
    from interlace.train.replay import find_run
    from interlace.train.replay import replay as again

    check_device(device)
    with Meter() as meter:
        found = again(find_run(run), step, device, meter.update)
    if json:
        print_json(found.to_dict())
        return
    rows = [[x.part, f"{x.largest:.4g}", "yes" if x.finite else "no", f"{x.grad_norm:.4g}"] for x in found.looks]
    print_table(f"step {found.step}", ["part", "largest output", "finite", "gradient norm"], rows)
    say(f"loss {found.loss:g}, gradient norm {found.grad_norm:g}")
    if found.skipped:
        say(f"The step changes no weight: {found.skipped}.")
    if found.logged:
        say(f"The loss differs from the logged one: {found.logged}.")
    bad = found.first_bad
    say(f"The first NaN or infinity is in: {bad}." if bad else "Every value is finite.", style="bold")
