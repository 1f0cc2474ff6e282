"""What a step may use while it works on a row: templates, teachers, and processes for work that may hang."""

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
    """What a teacher is asked.

    Attributes:
        messages: [{"role": ..., "content": ...}, ...].
        sampling: temperature, top_p, max_tokens, stop, and what else the endpoint takes.
        schema: JSON schema of the answer, or None for text.
        sample: tells apart requests that are the same otherwise.
    """

    messages: tuple[dict[str, str], ...]
    sampling: dict[str, Any]
    schema: dict[str, Any] | None = None
    sample: int = 0


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        state: of the request.
        text: the answer, without its reasoning.
        reasoning: the trace that a teacher gave apart, or between tags.
        error: why the state is not "ok".
        teacher: who gave it.
        keys: of the requests in the ledger; the last was answered so, those before it failed.
    """

    state: State
    text: str
    reasoning: str
    error: str
    teacher: str
    keys: tuple[str, ...]


class Asks(Protocol):
    """Who can be asked."""

    async def ask(self, teachers: Sequence[str], question: Question) -> Answer:
        """The answer of the first teacher that has one."""


@dataclass
class Desk:
    """One step's, or one row's.

    Attributes:
        step: the name of the step.
        folder: the recipe's; paths in it start here.
        seed: the recipe's.
        used: keys of the requests that were made so far.
        notes: what a step says at its end.
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
        """The same, with nothing used yet."""
        return replace(self, used=[])

    async def ask(self, teachers: Sequence[str], question: Question) -> Answer:
        """Ask; the request is remembered as used by this row."""
        assert self.client is not None
        answer = await self.client.ask(teachers, question)
        self.used += answer.keys
        return answer

    @staticmethod
    async def together(work: Iterable[Awaitable[T]]) -> list[T]:
        """All results. Where one fails, the others still end, so that no answer on its way is thrown away."""
        found = await asyncio.gather(*work, return_exceptions=True)
        errors = [x for x in found if isinstance(x, BaseException)]
        if errors:
            raise errors[0]
        return [x for x in found if not isinstance(x, BaseException)]

    def render(self, template: str, row: Row | Mapping[str, Any], where: str) -> str:
        """A template over a row's columns."""
        values = row.values if isinstance(row, Row) else row
        return self.templates.render(template, values, f"steps.{self.step}.{where}")

    async def work(self, module: str, request: Any, seconds: float = 5.0) -> Any:
        """The answer of a process that runs `module`; see `interlace.sandbox.worker`."""
        name = f"{module} {seconds}"
        if name not in self.pools:
            self.pools[name] = Workers(module, os.cpu_count() or 1, seconds)
        return await self.pools[name].ask(request)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Something that a run makes once, and keeps."""
        if name not in self.kept:
            self.kept[name] = make()
        found: T = self.kept[name]
        return found

    def close(self) -> None:
        """End the processes that `work` started."""
        for pool in self.pools.values():
            pool.close()

    async def on_a_core(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call something that takes a while in a thread, as many at once as there are cores."""
        async with self.cores:
            return await asyncio.to_thread(work, *arguments)
