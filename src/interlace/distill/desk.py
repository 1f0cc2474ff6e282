"""The desk: what a step uses while it works on a row (templates, teachers, and processes for work that may hang)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from interlace.distill.ledger.records import Row, State
from interlace.sandbox.templates import Templates
from interlace.sandbox.worker import Workers

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question to a teacher.

    Attributes:
        messages: [{"role": ..., "content": ...}, ...].
        sampling: temperature, top_p, max_tokens, stop, and other keys that the endpoint takes.
        schema: JSON schema of the answer, or None for text.
        sample: a number that makes questions different which are equal otherwise.
    """

    messages: tuple[dict[str, str], ...]
    sampling: dict[str, Any]
    schema: dict[str, Any] | None = None
    sample: int = 0


@dataclass(frozen=True)
class Answer:
    """A teacher's answer to a question.

    Attributes:
        state: the state of the request.
        text: the answer, without its reasoning.
        reasoning: the trace that the teacher wrote in a field of its own, or between tags.
        error: why the state is not "ok".
        teacher: the name of the teacher that answered.
        keys: keys of the requests in the ledger; the last one got this answer, those before it failed.
    """

    state: State
    text: str
    reasoning: str
    error: str
    teacher: str
    keys: tuple[str, ...]


class Asks(Protocol):
    """Anything that can put questions to teachers."""

    async def ask(self, teachers: Sequence[str], question: Question) -> Answer:
        """Return the answer of the first teacher that has one."""


@dataclass
class Desk:
    """The tools that one step, or one row of that step, works with.

    Attributes:
        step: the name of the step.
        folder: the recipe's folder; relative paths in the recipe start here.
        seed: the recipe's seed.
        templates: renders the recipe's templates.
        client: asks the teachers; None while nothing may be asked.
        used: keys of the requests that were made so far.
        notes: remarks that the step stores at its end.
        pools: the processes that `work` started, by module and time limit.
        kept: the values that `once` made, by name.
        cores: limits the threads of `on_a_core` to the number of cores.
    """

    step: str
    folder: Path
    seed: int
    templates: Templates
    client: Asks | None = None
    used: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, Workers] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    cores: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(os.cpu_count() or 1))

    def for_row(self) -> Desk:
        """Return a copy for one row, with no requests used yet."""
        return replace(self, used=[])

    async def ask(self, teachers: Sequence[str], question: Question) -> Answer:
        """Ask the teachers, and record the requests as used by this row."""
        assert self.client is not None
        answer = await self.client.ask(teachers, question)
        self.used += answer.keys
        return answer

    @staticmethod
    async def together(work: Iterable[Awaitable[T]]) -> list[T]:
        """Wait for all the work and return its results.

        If one part fails, the others still run to their end: their requests are in flight and will be charged.
        """
        found = await asyncio.gather(*work, return_exceptions=True)
        errors = [x for x in found if isinstance(x, BaseException)]
        if errors:
            raise errors[0]
        return [x for x in found if not isinstance(x, BaseException)]

    def render(self, template: str, row: Row | Mapping[str, Any], where: str) -> str:
        """Render a template over a row's columns; `where` is the template's field, for errors."""
        values = row.values if isinstance(row, Row) else row
        return self.templates.render(template, values, f"steps.{self.step}.{where}")

    async def work(self, module: str, request: Any, seconds: float = 5.0) -> Any:
        """Send a request to a process that runs `module` and return its answer; see `interlace.sandbox.worker`.

        seconds: the time limit of one request.
        """
        name = f"{module} {seconds}"
        if name not in self.pools:
            self.pools[name] = Workers(module, os.cpu_count() or 1, seconds)
        return await self.pools[name].ask(request)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return the value that `make` gives; it is called once in a run, and its value is reused."""
        if name not in self.kept:
            self.kept[name] = make()
        found: T = self.kept[name]
        return found

    def close(self) -> None:
        """End the processes that `work` started."""
        for pool in self.pools.values():
            pool.close()

    async def on_a_core(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call slow work in a thread; at most as many run at once as there are cores."""
        async with self.cores:
            return await asyncio.to_thread(work, *arguments)
