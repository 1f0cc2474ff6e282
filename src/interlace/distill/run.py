"""A run folder of distillation: run.toml, ledger.sqlite, and what the verbs read from them.

from interlace.distill.run import generate, status
from interlace.distill.export import export

generate("recipe.toml", "runs/maths")
export("runs/maths", "data/maths")
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import platform
import secrets
import signal
import time
import tomllib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ConfigDict, Field

import interlace
from interlace.base.errors import ConfigError, DataError, RunError
from interlace.base.files import disk_errors, user_path, write_file
from interlace.base.schema import Closed, validate
from interlace.distill.desk import Desk
from interlace.distill.flow import Flow, outlook, stage_id
from interlace.distill.ledger.ledger import STATES, Ledger, Spent
from interlace.distill.recipe import Recipe, read_recipe
from interlace.distill.teachers.client import Client, Stopped, Tally, Transport
from interlace.sandbox.templates import Templates

RUN, LEDGER = "run.toml", "ledger.sqlite"
DEPENDENCIES = ("aiohttp", "jinja2", "jsonschema", "sympy", "pyarrow")


def versions() -> dict[str, str]:
    """What the rows of a run depend on beside its recipe."""
    found = {"interlace": interlace.__version__, "python": platform.python_version()}
    for name in DEPENDENCIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Snapshot:
    """How a run goes, for a display.

    Attributes:
        steps: for each step, its rows by state.
        spent: of the budget, by this run folder.
        tally: of this process.
        limits: as in the recipe: requests, tokens, cost.
        share: of the work that is done.
        rows_per_second: answers lately.
        expected_cost: USD of the whole run, if it goes on as it has.
        seconds_left: None while nothing was timed.
        finished: whether this is the last one.
        waits: a sentence for each teacher that does not answer, or sends everything back.
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


class Watch:
    """Makes snapshots of a flow; knows how fast it went lately."""

    def __init__(self, flow: Flow, seconds: float = 20.0):
        """seconds: that count as lately."""
        self.flow, self.seconds = flow, seconds
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, finished: bool = False) -> Snapshot:
        """Now."""
        flow = self.flow
        found, spent = outlook(flow), flow.ledger.spent()
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


@dataclass(frozen=True)
class Kept:
    """A step as run.toml keeps it, so that a run can be read when its inputs are gone.

    Attributes:
        id: under which its rows are kept.
    """

    name: str
    kind: str
    id: str
    feeds: tuple[str, ...]


class _Stage(Closed):
    name: str
    kind: str
    id: str
    feeds: tuple[str, ...] = Field(alias="from", strict=False)


class _Recipe(Closed):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    steps: tuple[dict[str, Any], ...] = Field(strict=False)
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    output: dict[str, Any] = Field(default_factory=dict)


class _About(Closed):
    """What run.toml must hold; what else stands in it is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    run_id: str = Field(min_length=1)
    begun: str = ""
    ledger: str = Field(min_length=1)
    last: str
    stages: tuple[_Stage, ...] = Field(strict=False)
    inputs: dict[str, str] = Field(default_factory=dict)
    recipe_file: str = "recipe.toml"
    recipe: _Recipe
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """A folder that `generate` wrote.

    Attributes:
        id: whose budget its requests count against in the ledger.
        ledger: the file.
        stages: in an order in which each comes after those that feed it.
        about: what run.toml holds: recipe, versions, when it was begun.
        known: whether it was there before.
    """

    path: Path
    id: str
    ledger: Path
    stages: tuple[Kept, ...]
    about: dict[str, Any]
    known: bool = True

    @staticmethod
    def read(path: Path) -> RunFolder:
        """Open one.

        Raises:
            RunError: it is no such folder, or its run.toml is damaged.
        """
        path = user_path(path, RunError)
        file = path / RUN
        if not file.is_file():
            raise RunError(f"{path}: holds no {RUN}; name the folder that `interlace distill generate` wrote")
        try:
            about = tomllib.loads(file.read_text(encoding="utf-8-sig"))
            found = validate(_About, about, "")
            steps = {step.get("name", step.get("kind")) for step in found.recipe.steps}
            names = [stage.name for stage in found.stages]
            unknown = [name for name in names if name not in steps] + [n for n in (found.last,) if n not in names]
            if unknown:
                raise ConfigError(f"no step is called {unknown[0]!r}")
        except (ValueError, OSError, ConfigError) as error:
            raise RunError(f"{file}: is not the {RUN} of a distillation: {error}; put it back") from None
        stages = tuple(Kept(s.name, s.kind, s.id, s.feeds) for s in found.stages)
        return RunFolder(path, found.run_id, path / found.ledger, stages, about)

    @staticmethod
    def open(path: Path, recipe: Recipe, file: Path, limit: int | None = None) -> RunFolder:
        """Take up the one that is there, or make another, whose run.toml `write` writes; an edited recipe goes on.

        Raises:
            RunError: the folder holds something else.
        """
        known = (path / RUN).is_file()
        if known:
            old = RunFolder.read(path)
            run_id, begun = old.id, old.about.get("begun", "")
        elif path.exists() and (not path.is_dir() or any(not p.name.startswith(LEDGER) for p in path.iterdir())):
            raise RunError(f"{path}: exists and is not a run folder; name another --out")
        else:
            run_id, begun = secrets.token_hex(8), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        ledger = str((recipe.folder / recipe.run.ledger).resolve()) if recipe.run.ledger else LEDGER
        stages = tuple(Kept(n, s.step.kind, stage_id(s, limit), s.feeds) for n, s in recipe.stages.items())
        about = {
            "run_id": run_id,
            "begun": begun,
            "ledger": ledger,
            "last": recipe.last.step.name,
            "stages": [{"name": k.name, "kind": k.kind, "id": k.id, "from": list(k.feeds)} for k in stages],
            "inputs": {f: h for s in recipe.stages.values() for f, h in s.inputs.items()},
            "recipe_file": file.name,
            "recipe": recipe.raw,
            "versions": versions(),
        }
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return RunFolder(path, run_id, path / ledger, stages, about, known)

    def write(self) -> None:
        """Write run.toml; after the ledger is there, so that a known run without one has lost it."""
        write_file(self.path / RUN, tomli_w.dumps(self.about))

    @property
    def last(self) -> Kept:
        """The step whose rows are written."""
        return next(s for s in self.stages if s.name == self.about["last"])

    def open_ledger(self) -> Ledger:
        """To read.

        Raises:
            DataError: it is missing or damaged.
        """
        return Ledger(self.ledger, self.id, create=False, write=False)


def transports(recipe: Recipe) -> dict[str, Transport]:
    """What sends to each teacher that a step may ask; keys are read, nothing is sent."""
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
    watch: Callable[[Snapshot], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a recipe in a folder, or go on with it; returns what `status` says.

    Args:
        recipe: the TOML file.
        out: the run folder.
        limit: the most rows of every source, for a trial.
        retry: states whose rows are done again, with requests sent anew, such as "failed".
        watch: told how it goes, twice a second.
        say: told at once that an interrupt was seen.

    Raises:
        ConfigError, DataError, RunError: the recipe, its inputs or the folder are wrong; nothing was sent.
        Exhausted: a limit of the budget is reached. Stopped: it was interrupted. Dead: an endpoint is.
    """
    file = user_path(recipe, ConfigError)
    for state in retry:
        if state not in STATES or state == "ok":
            raise DataError(f"retry: {state!r} is not a state that can be tried again; name {', '.join(STATES[1:])}")
    with contextlib.ExitStack() as open_:
        templates = open_.enter_context(contextlib.closing(Templates()))
        templates.start()  # while inputs are read
        plan = read_recipe(file, overrides, templates)
        senders = transports(plan)
        folder = RunFolder.open(user_path(out, RunError), plan, file, limit)
        ledger = Ledger(folder.ledger, folder.id, create=not folder.known)
        open_.callback(ledger.close)
        folder.write()
        desk = Desk("", plan.folder, plan.run.seed, templates)
        open_.callback(desk.close)
        used = {name: plan.teachers[name] for name in senders}
        client = Client(ledger, used, senders, plan.limits)
        flow = Flow(plan, ledger, client, desk, limit)
        seen = Watch(flow)
        flow.tell = lambda: watch(seen.look())
        again(flow, retry)
        try:
            asyncio.run(_drive(flow, senders, say))
        finally:
            watch(seen.look(finished=True))
        return summary(folder, ledger)


def again(flow: Flow, states: Sequence[str]) -> None:
    """Open up rows that ended in these states, and every step after them that sees all rows at once."""
    touched: set[str] = set()
    for name, stage in flow.recipe.stages.items() if states else ():
        id_ = flow.stage_id(name)
        below = bool(touched & set(stage.feeds))
        count = flow.ledger.count(id_)
        if any(count.get(s) for s in states):
            flow.ledger.reopen(id_, states)
            touched.add(name)
        if below:
            touched.add(name)
            if stage.step.ORDERED:
                flow.ledger.clear_stage(id_)
            flow.ledger.open_stage(id_)


async def _drive(flow: Flow, senders: dict[str, Transport], say: Callable[[str], None]) -> None:
    """Run until the end; the first interrupt lets what is in flight finish, the second does not."""
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


def summary(folder: RunFolder, ledger: Ledger) -> dict[str, Any]:
    """What a run has come to, as plain data: each step's rows by state, reasons, and what was spent."""
    steps = []
    for stage in folder.stages:
        usage = ledger.usage(stage.id)
        steps.append(
            {
                "step": stage.name,
                "kind": stage.kind,
                "from": list(stage.feeds),
                "done": ledger.done(stage.id),
                "rows": ledger.count(stage.id),
                "ended": [{"state": s, "reason": r, "rows": n} for s, r, n in ledger.reasons(stage.id)],
                "requests": sum(u["requests"] for u in usage),
                "cost": sum(u["cost"] or 0.0 for u in usage),
                "usage": usage,
                "notes": ledger.notes(stage.id),
            }
        )
    return {"run": str(folder.path), "steps": steps, "spent": asdict(ledger.spent())}


def status(run: str | Path) -> dict[str, Any]:
    """How far a run folder is, while it runs or afterwards; changes nothing.

    Raises:
        RunError, DataError: it is no run folder, or its ledger is missing or damaged.
    """
    folder = RunFolder.read(Path(run))
    ledger = folder.open_ledger()
    try:
        return summary(folder, ledger)
    finally:
        ledger.close()
