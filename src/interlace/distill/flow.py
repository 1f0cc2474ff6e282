"""Run all steps of a recipe at once.

Each step takes rows as the steps before it write them. A row that is in the ledger is never made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from interlace.base.errors import InterlaceError
from interlace.base.text import clean_values
from interlace.distill.desk import Desk
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import NewRow, Row
from interlace.distill.recipe import DistillRecipe, Stage
from interlace.distill.steps.base import OF_A_ROW, ended_by
from interlace.distill.teachers.client import Client

CHUNK = 500  # rows of a source that are written at once, or ids of waiting rows that are read at once
BEAT_SECONDS = 20.0
DIGITS = 9  # digits of a row's number


def stage_id(stage: Stage, limit: int | None = None) -> str:
    """Return the id under which a stage's rows are stored; a trial with `limit` has ids of its own."""
    return stage.id + (f"-{limit}" if limit else "")


@dataclass
class StageRun:
    """The progress of one stage.

    Attributes:
        done: whether all its rows are written.
        moved: an event that is set whenever a row is written, and at the end.
    """

    stage: Stage
    done: bool = False
    moved: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Flow:
    """One run of a recipe.

    Attributes:
        limit: the most rows of every source, for a trial; None for all rows.
        tell: called twice a second while the recipe runs.
        courses: the progress of each stage, by the step's name.
    """

    recipe: DistillRecipe
    ledger: Ledger
    client: Client
    desk: Desk
    limit: int | None = None
    tell: Callable[[], None] = lambda: None
    courses: dict[str, StageRun] = field(default_factory=dict)

    def stage_id(self, name: str) -> str:
        """Return `stage_id` of the stage with this name."""
        return stage_id(self.recipe.stages[name], self.limit)

    async def run(self) -> None:
        """Run until every row has ended.

        Raises:
            InterlaceError: why the run ended before; what is written stays.
        """
        self.courses = {name: StageRun(stage) for name, stage in self.recipe.stages.items()}
        ticker = asyncio.create_task(self._tick())
        try:
            # Without return_exceptions, one error would throw away what is in flight in other stages: answers were once
            # paid for and not written (docs/LOG.md).
            results = await asyncio.gather(*(self._stage(c) for c in self.courses.values()), return_exceptions=True)
        finally:
            ticker.cancel()
            self.tell()
        found = [r for r in results if isinstance(r, BaseException)]
        for error in found:
            if not isinstance(error, InterlaceError):
                raise error
        if self.client.stop is not None:
            raise self.client.stop
        if found:
            raise found[0]

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            try:
                self.tell()
            except Exception as error:
                self.client.halt(InterlaceError(f"the display failed: {error!r}"))
                raise
            await asyncio.sleep(0.5)
            if time.monotonic() - last > BEAT_SECONDS:
                last = time.monotonic()
                self.ledger.beat()

    async def _stage(self, course: StageRun) -> None:
        """Run one stage; an error stops the other stages too."""
        step = course.stage.step
        try:
            if self.ledger.rows.begin_stage(self.stage_id(step.name), step.ORDERED):
                course.done = True
                return
            desk = self._desk(step.name)
            if step.FEEDS:
                await self._source(course, desk)
            elif step.ORDERED:
                await self._ordered(course, desk)
            else:
                await self._one_by_one(course, desk)
            self.ledger.rows.end_stage(self.stage_id(step.name), desk.notes)
            course.done = True
        except Exception as error:
            self._halt(course, error)
            raise
        finally:
            course.moved.set()

    def _halt(self, course: StageRun, error: Exception) -> None:
        """Stop all stages because of an error in one of them."""
        if not isinstance(error, InterlaceError):
            error = InterlaceError(f"steps.{course.stage.step.name}: {error!r}")
        self.client.halt(error)

    def _desk(self, name: str) -> Desk:
        return replace(self.desk, step=name, client=self.client, used=[], notes={})

    async def _source(self, course: StageRun, desk: Desk) -> None:
        """Write the rows of a source; rows that are in the ledger already stay as they are."""
        name = course.stage.step.name
        limits = [x for x in (self.limit, getattr(course.stage.step, "limit", None)) if x]
        chunk: list[NewRow] = []
        for number, values in enumerate(course.stage.step.rows(desk)):
            if limits and number >= min(limits):
                break
            chunk.append(NewRow(f"{number:0{DIGITS}}", clean_values(values)))
            if len(chunk) == CHUNK:
                await self._write(course, name, chunk)
                chunk = []
        await self._write(course, name, chunk)

    async def _write(self, course: StageRun, name: str, rows: list[NewRow]) -> None:
        if self.client.stop is not None:
            raise self.client.stop
        self.ledger.rows.add(self.stage_id(name), rows)
        course.moved.set()
        await asyncio.sleep(0)

    async def _one_by_one(self, course: StageRun, desk: Desk) -> None:
        """Take rows as they come, and work on up to `rows_at_once` of them at once."""
        waiting = self._arrivals(course)
        lock = asyncio.Lock()

        async def lane() -> None:
            while True:
                async with lock:
                    try:
                        row, prefix = await anext(waiting)
                    except StopAsyncIteration:
                        return
                try:
                    await self._row(course, row, prefix, desk.for_row())
                except Exception as error:  # the other lanes stop too
                    self._halt(course, error)
                    raise

        lanes = [asyncio.create_task(lane()) for _ in range(self.recipe.run.rows_at_once)]
        results = await asyncio.gather(*lanes, return_exceptions=True)  # answers in flight are written first
        errors = [r for r in results if isinstance(r, BaseException)]
        if errors:
            raise next((e for e in errors if not isinstance(e, InterlaceError)), errors[0])

    async def _row(self, course: StageRun, row: Row, prefix: str, desk: Desk) -> None:
        """Run a step on one row and write the rows that leave it.

        A template that fails on the row ends this row; an unsafe template ends the run.
        """
        step = course.stage.step
        try:
            outs = await step.one(row, desk)
        except OF_A_ROW as error:
            if self.client.stop is not None:
                raise
            outs = [ended_by(error)]
        own = {key for out in outs for key in out.requests}
        shared = tuple(key for key in desk.used if key not in own)
        rows = []
        for place, out in enumerate(outs):
            key = prefix + (row.key if len(outs) == 1 else f"{row.key}.{place:03}")
            used = out.requests + (shared if not place else ())
            rows.append(NewRow(key, clean_values(out.values), row.id, out.state, out.reason, used))
        self.ledger.rows.add(self.stage_id(step.name), rows)
        course.moved.set()

    async def _arrivals(self, course: StageRun) -> AsyncIterator[tuple[Row, str]]:
        """Yield (row, prefix of its key) for each new row of the steps before, as the rows are written."""
        stage, feeds = self.stage_id(course.stage.step.name), course.stage.feeds
        after = dict.fromkeys(feeds, 0)
        while True:
            ended = all(self.courses[f].done for f in feeds)
            for feed in feeds:
                self.courses[feed].moved.clear()
            found = 0
            for feed in feeds:
                ids = self.ledger.rows.waiting(self.stage_id(feed), stage, after[feed], CHUNK)
                for id_ in ids:
                    if self.client.stop is not None:
                        raise self.client.stop
                    after[feed] = id_
                    found += 1
                    yield self.ledger.rows.row(id_), self._prefix(course, feed)
            if not found:
                if ended:
                    return
                if self.client.stop is not None:
                    raise self.client.stop
                waits = [asyncio.create_task(self.courses[f].moved.wait()) for f in feeds if not self.courses[f].done]
                await asyncio.wait(waits, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in waits:
                    task.cancel()

    @staticmethod
    def _prefix(course: StageRun, feed: str) -> str:
        """Return a prefix for keys; it keeps the rows of several feeding steps apart."""
        return f"{course.stage.feeds.index(feed)}-" if len(course.stage.feeds) > 1 else ""

    async def _ordered(self, course: StageRun, desk: Desk) -> None:
        """Wait for all rows, then pass them to the step in order.

        After an interruption the step goes through all rows again. Rows that are written stay, and answers come from
        the ledger.
        """
        # To clear the rows and make them again, as an earlier version did, leaves rows of later steps without a parent.
        for feed in course.stage.feeds:
            await self._end_of(feed)
        rows = functools.partial(self._rows_of, course)
        chunk: list[NewRow] = []
        number = 0
        async for out in course.stage.step.all(rows, desk):
            key = out.parent.key if out.parent is not None else f"{number:0{DIGITS}}"
            number += 1
            parent = out.parent.id if out.parent is not None else None
            chunk.append(NewRow(key, clean_values(out.values), parent, out.state, out.reason, out.requests))
            if len(chunk) == CHUNK:
                await self._write(course, course.stage.step.name, chunk)
                chunk = []
        await self._write(course, course.stage.step.name, chunk)

    async def _end_of(self, feed: str) -> None:
        """Wait until all rows of a stage are written."""
        while not self.courses[feed].done:
            if self.client.stop is not None:
                raise self.client.stop
            self.courses[feed].moved.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.courses[feed].moved.wait(), 1.0)

    def _rows_of(self, course: StageRun) -> Iterator[Row]:
        """Yield all rows that reach a stage, ordered by the stage they come from and then by key."""
        for feed in course.stage.feeds:
            prefix = self._prefix(course, feed)
            for row in self.ledger.rows.ordered(self.stage_id(feed)):
                yield Row(row.id, prefix + row.key, row.state, row.reason, row.values)


@dataclass(frozen=True)
class Outlook:
    """How far a run is.

    Attributes:
        steps: each step's rows by state.
        done: requests of the rows that have passed their steps.
        expected: requests of the whole run, if rows continue to be dropped at the same share.
    """

    steps: list[dict[str, Any]]
    done: int
    expected: int


def outlook(flow: Flow) -> Outlook:
    """Count the rows of every step, and expect waiting rows to be dropped at the same share as earlier ones."""
    leaving: dict[str, float] = {}
    steps, done, expected = [], 0.0, 0.0
    for name, stage in flow.recipe.stages.items():
        rows = flow.ledger.rows.count(flow.stage_id(name))
        steps.append({"step": name, "rows": rows})
        step, out, ok = stage.step, sum(rows.values()), rows.get("ok", 0)
        if step.FEEDS or flow.courses[name].done:
            leaving[name] = ok
        reach = sum(leaving[f] for f in stage.feeds)
        through = reach if flow.courses[name].done else out / max(step.fan(1), 1)
        if name not in leaving:
            leaving[name] = max(ok, reach * step.fan(1) * (ok / out if out else 1.0))
        done += step.requests(round(through))
        expected += max(step.requests(round(reach)), step.requests(round(through)))
    return Outlook(steps, round(done), round(expected))
