"""Run a recipe in a run folder, and report how far a run is.

from interlace.distill.run import generate, status
from interlace.distill.export import export

generate("recipe.toml", "runs/maths")
export("runs/maths", "data/maths")
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, DataError, RunError
from interlace.base.files import user_path
from interlace.distill.desk import Desk
from interlace.distill.flow import Flow, outlook
from interlace.distill.folder import DistillRun
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import STATES, Spent
from interlace.distill.recipe import DistillRecipe, read_recipe
from interlace.distill.teachers.client import Client, Stopped
from interlace.distill.teachers.line import Tally, Transport
from interlace.runs.progress import Progress, Watch, silent
from interlace.sandbox.templates import Templates


@dataclass(frozen=True)
class Snapshot:
    """The progress of a run at one moment, for a display.

    Attributes:
        steps: each step's rows by state.
        spent: what this run folder has taken from the budget.
        tally: what this process has counted.
        limits: the recipe's limits of requests, tokens and cost.
        share: the share of the work that is done.
        rows_per_second: answers per second, lately.
        expected_cost: USD of the whole run, if it continues as before.
        seconds_left: expected seconds to the end; None until something was timed.
        finished: whether this is the last snapshot.
        waits: a sentence for each teacher that does not answer, or rejects everything.
    """

    steps: list[dict[str, Any]]
    spent: Spent
    tally: Tally
    limits: dict[str, float | None]
    share: float
    rows_per_second: float
    expected_cost: float
    seconds_left: float | None
    finished: bool = False
    waits: tuple[str, ...] = ()


class Snapshots:
    """Makes snapshots of a flow, and remembers how fast it was lately."""

    def __init__(self, flow: Flow, seconds: float = 20.0):
        """Start with no snapshot.

        seconds: the time over which speed is measured.
        """
        self.flow, self.seconds = flow, seconds
        self._seen: deque[tuple[float, int]] = deque()

    def progress(self, finished: bool = False) -> Progress:
        """Return the progress at this moment; its detail is a Snapshot."""
        found = self.look(finished)
        return Progress("rows", found.share, 1.0, found.seconds_left, found)

    def look(self, finished: bool = False) -> Snapshot:
        """Return a snapshot of this moment."""
        flow = self.flow
        found, spent = outlook(flow), flow.ledger.requests.spent()
        now, tally = time.monotonic(), flow.client.tally
        answers = sum(tally.by_state.values())
        self._seen.append((now, answers))
        while len(self._seen) > 2 and now - self._seen[0][0] > self.seconds:
            self._seen.popleft()
        passed = now - self._seen[0][0]
        rate = (answers - self._seen[0][1]) / passed if passed > 0 else 0.0
        left = max(0, found.expected - found.done)
        mean = spent.cost / spent.requests if spent.requests else 0.0
        return Snapshot(
            found.steps,
            spent,
            tally,
            asdict(flow.recipe.limits),
            found.done / found.expected if found.expected else float(finished),
            rate,
            spent.cost + left * mean,
            left / rate if rate > 0 else None,
            finished,
            tuple(s for line in flow.client.lines.values() if (s := line.silence(now))),
        )


def transports(recipe: DistillRecipe) -> dict[str, Transport]:
    """Make the transport of each teacher that a step may ask; keys are read, nothing is sent."""
    from interlace.distill.teachers.endpoint import Endpoint

    asked = {name for stage in recipe.stages.values() for name in stage.step.asks()}
    made: dict[str, Transport] = {}
    for name, teacher in recipe.teachers.items():
        if name not in asked:
            continue
        if teacher.kind == "endpoint":
            made[name] = Endpoint(name, teacher)
        else:
            from interlace.distill.teachers.local import Local

            made[name] = Local(name, teacher)
    return made


def generate(
    recipe: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    limit: int | None = None,
    retry: Sequence[str] = (),
    watch: Watch = silent,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a recipe in a folder, or resume it; return what `status` returns.

    Args:
        recipe: the TOML file.
        out: the run folder.
        limit: the most rows of every source, for a trial.
        retry: states whose rows are made again, with their requests sent anew, such as "failed".
        watch: called with the progress twice a second.
        say: called with a message as soon as an interrupt arrives.

    Raises:
        ConfigError, DataError, RunError: the recipe, its inputs or the folder are wrong; nothing was sent.
        Exhausted: a limit of the budget is reached. Stopped: it was interrupted. Dead: an endpoint does not answer.
    """
    file = user_path(recipe, ConfigError)
    for state in retry:
        if state not in STATES or state == "ok":
            raise DataError(f"retry: {state!r} is not a state that can be tried again; name {', '.join(STATES[1:])}")
    with contextlib.ExitStack() as open_:
        templates = open_.enter_context(contextlib.closing(Templates()))
        templates.start()  # it starts while inputs are read
        plan = read_recipe(file, overrides, templates)
        senders = transports(plan)
        folder = DistillRun.begin(user_path(out, RunError), plan, file, limit)
        ledger = Ledger(folder.ledger, folder.id, create=not folder.known)
        open_.callback(ledger.close)
        folder.write()
        desk = Desk("", plan.folder, plan.run.seed, templates)
        open_.callback(desk.close)
        used = {name: plan.teachers[name] for name in senders}
        client = Client(ledger, used, senders, plan.limits)
        flow = Flow(plan, ledger, client, desk, limit)
        seen = Snapshots(flow)
        flow.tell = lambda: watch(seen.progress())
        again(flow, retry)
        try:
            asyncio.run(_drive(flow, senders, say))
        finally:
            watch(seen.progress(finished=True))
        return summary(folder, ledger)


def again(flow: Flow, states: Sequence[str]) -> None:
    """Reopen the rows that ended in these states.

    Every later step that sees all rows at once is cleared; every other later step is reopened.
    """
    touched: set[str] = set()
    for name, stage in flow.recipe.stages.items() if states else ():
        id_ = flow.stage_id(name)
        below = bool(touched & set(stage.feeds))
        count = flow.ledger.rows.count(id_)
        if any(count.get(s) for s in states):
            flow.ledger.rows.reopen(id_, states)
            touched.add(name)
        if below:
            touched.add(name)
            if stage.step.ORDERED:
                flow.ledger.rows.clear_stage(id_)
            flow.ledger.rows.open_stage(id_)


async def _drive(flow: Flow, senders: dict[str, Transport], say: Callable[[str], None]) -> None:
    """Run to the end; the first interrupt lets requests in flight finish, the second abandons them."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    presses = 0

    def interrupted() -> None:
        nonlocal presses
        presses += 1
        if presses == 1:
            out = flow.client.tally.in_flight
            some = "1 request" if out == 1 else f"{out} requests"
            say(
                f"interrupted: waiting for {some} in flight; press Ctrl-C again to leave {'it' if out == 1 else 'them'}"
            )
            flow.client.halt(Stopped("interrupted: what was in flight is written; run the same command to go on"))
        elif task is not None:
            task.cancel()

    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, interrupted)
            handled.append(number)
        except (NotImplementedError, RuntimeError, ValueError):  # not in the main thread, or not on this system
            break
    try:
        await flow.run()
    except asyncio.CancelledError:
        raise Stopped("interrupted twice: what was in flight is lost, and may have been charged") from None
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        for sender in senders.values():
            await sender.close()


def summary(folder: DistillRun, ledger: Ledger) -> dict[str, Any]:
    """Return the results of a run as plain data: each step's rows by state, reasons, and what was spent."""
    steps = []
    for stage in folder.stages:
        usage = ledger.requests.usage(stage.id)
        steps.append(
            {
                "step": stage.name,
                "kind": stage.kind,
                "from": list(stage.feeds),
                "done": ledger.rows.done(stage.id),
                "rows": ledger.rows.count(stage.id),
                "ended": [{"state": s, "reason": r, "rows": n} for s, r, n in ledger.rows.reasons(stage.id)],
                "requests": sum(u["requests"] for u in usage),
                "cost": sum(u["cost"] or 0.0 for u in usage),
                "usage": usage,
                "notes": ledger.rows.notes(stage.id),
            }
        )
    return {"run": str(folder.path), "steps": steps, "spent": asdict(ledger.requests.spent())}


def status(run: str | Path) -> dict[str, Any]:
    """Return how far a run is, while it runs or afterwards; nothing is changed.

    Raises:
        RunError, DataError: it is no run folder, or its ledger is missing or damaged.
    """
    folder = DistillRun(Path(run))
    ledger = folder.open_ledger()
    try:
        return summary(folder, ledger)
    finally:
        ledger.close()
