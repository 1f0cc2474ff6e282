"""Asking: a question goes to the ledger first, then past the budget and the pace to the teacher, and back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from interlace.base.errors import Failure, InterlaceError
from interlace.distill.control import Pace, Ticket, backoff
from interlace.distill.desk import Answer, Question
from interlace.distill.endpoint import Content, Limited, Outcome, Reply, content, request_body
from interlace.distill.ledger import Exhausted, Ledger, Limits, Record, Reserve, State, canonical, digest
from interlace.distill.teacher import Teacher

TURN_TOKENS = 16  # around each message: roles and marks
DEFAULT_ANSWER_TOKENS = 4096  # reserved where a question sets no max_tokens
POLL_SECONDS = 0.5
THINK = ("<think>", "</think>")


class Stopped(Failure):
    """The run was asked to stop; nothing new is sent."""


class Dead(Failure):
    """An endpoint has not answered for as long as its table allows."""


class Transport(Protocol):
    """What sends: an endpoint, or a checkpoint in this process."""

    async def send(self, body: dict[str, Any]) -> Outcome:
        """Send once."""

    async def close(self) -> None:
        """End."""


@dataclass
class Line:
    """One teacher: its table, its identity, its pace, and what sends."""

    name: str
    teacher: Teacher
    identity: dict[str, str]
    transport: Transport
    pace: Pace
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    answers: int = 0
    answer_tokens: int = 0
    prompt_bytes: int = 0
    prompt_tokens: int = 0

    def expected(self, question: Question) -> float:
        """Tokens that a question will about take, from those before it."""
        size = prompt_bytes(question)
        prompt = size * (self.prompt_tokens / self.prompt_bytes if self.prompt_bytes else 0.3)
        most = most_answer_tokens(question)
        return prompt + (min(self.answer_tokens / self.answers, most) if self.answers else most)


@dataclass
class Tally:
    """What the display shows, of this process alone.

    Attributes:
        by_state: answers by state, those from the ledger left out.
        errors: by kind, those that were tried again included.
        reused: answers that were in the ledger.
        in_flight: requests that are out.
    """

    by_state: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    in_flight: int = 0
    limited: int = 0


class Client:
    """Asks teachers, each question once."""

    def __init__(
        self, ledger: Ledger, teachers: Mapping[str, Teacher], transports: Mapping[str, Transport], limits: Limits
    ):
        """transports: by the teachers' names."""
        self.ledger, self.limits = ledger, limits
        self.lines = {
            name: Line(name, t, t.identity(), transports[name], Pace(t.connections)) for name, t in teachers.items()
        }
        self.tally = Tally()
        self.stop: InterlaceError | None = None
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._draw = random.Random()
        self._recovered = time.monotonic()

    def halt(self, reason: InterlaceError) -> None:
        """Send nothing new; the first reason counts."""
        self.stop = self.stop or reason
        for line in self.lines.values():
            line.changed.set()

    async def ask(self, teachers: Sequence[str], question: Question) -> Answer:
        """The answer of the first teacher that does not fail; the last one's failure if all do.

        Raises:
            Stopped, Exhausted, Dead: the run is to end.
        """
        for place, name in enumerate(teachers):
            line = self.lines[name]
            last = place == len(teachers) - 1
            if not last and line.pace.dead_for(time.monotonic()) > 0 and self._find(line, question) is None:
                continue  # the breaker is open: the next in line answers meanwhile
            try:
                record = await self._settle(line, question)
            except Dead:
                if last:
                    raise
                continue
            if record.state != "failed" or last:
                return self._answer(record)
        raise AssertionError("a step names at least one teacher")

    def key(self, line: Line, question: Question) -> str:
        """The hash that a question is known by."""
        parts = {"teacher": line.identity, "messages": list(question.messages), "sampling": question.sampling}
        return digest({**parts, "schema": question.schema, "sample": question.sample})

    def _find(self, line: Line, question: Question) -> Record | None:
        return self.ledger.find(self.key(line, question))

    async def _settle(self, line: Line, question: Question) -> Record:
        """The record of a question: from the ledger, from whoever is just asking it, or from the teacher."""
        key = self.key(line, question)
        while True:
            found = self.ledger.find(key)
            if found is not None:
                self.tally.reused += 1
                return found
            if key in self._asked:
                await asyncio.wait([self._asked[key]])
                continue
            self._asked[key] = asyncio.get_running_loop().create_future()
            try:
                made = await self._send(line, key, question)
            finally:
                self._asked.pop(key).set_result(None)
            if made is not None:
                return made
            await self._elsewhere()

    async def _elsewhere(self) -> None:
        """Another process is asking the same: wait a little, and see whether it has gone."""
        if self.stop is not None:
            raise self.stop
        await asyncio.sleep(POLL_SECONDS)
        if time.monotonic() - self._recovered > 5:
            self._recovered = time.monotonic()
            self.ledger.recover()

    async def _send(self, line: Line, key: str, question: Question) -> Record | None:
        """Send until there is an answer, or no more sense in trying; None if another process was faster."""
        teacher, body = line.teacher, request_body(line.teacher, question)
        if teacher.kind == "local":  # draws from a seed of its own, so that it answers the same again
            body["seed"] = int(key[:8], 16)
        asked = {**body, "sample": question.sample}
        reserve = self._reserve(line, question)
        record = Record(key, line.name, "failed")
        began = time.monotonic()
        while True:
            ticket = await self._turn(line, line.expected(question))
            try:
                if not self.ledger.claim(key, line.name, canonical(asked), reserve, self.limits):
                    line.pace.refused(ticket)
                    return None
            except Exhausted as error:
                line.pace.refused(ticket)
                self.halt(error)
                raise
            self.tally.in_flight += 1
            try:
                outcome = await line.transport.send(body)
            except InterlaceError as error:
                line.pace.refused(ticket)
                self.ledger.give_up_try(key, reserve, False)
                self.halt(error)
                raise
            except BaseException:
                line.pace.refused(ticket)
                raise
            finally:
                self.tally.in_flight -= 1
                line.changed.set()
            now = time.monotonic()
            record.seconds = now - began
            if isinstance(outcome, Reply):
                record.tries += 1
                self._fill(record, line, question, outcome)
                line.pace.success(ticket, record.tokens, now)
                line.changed.set()
                self.ledger.finish(record, reserve)
                self.tally.by_state[record.state] += 1
                return record
            if isinstance(outcome, Limited):
                record.waits += 1
                self.tally.limited += 1
                line.pace.limited(ticket, outcome.kind, outcome.retry_after, now)
                self.ledger.unclaim(key, reserve)
                continue
            record.tries += 1
            record.error, record.response = outcome.error, outcome.raw
            self.tally.errors[outcome.error.split(":")[0][:40]] += 1
            self.ledger.give_up_try(key, reserve, outcome.charged)
            if outcome.alive:
                line.pace.refused(ticket)
            else:
                line.pace.trouble(ticket, now)
            line.changed.set()
            open_breaker = line.pace.dead_for(now) > 0
            if not outcome.passing or (record.tries >= teacher.tries and not open_breaker):
                return self._fail(record)
            if open_breaker and line.pace.dead_for(now) > teacher.patience_seconds:
                raise self._died(line, outcome.error)
            await self._pause(max(backoff(record.tries, self._draw), outcome.retry_after or 0.0))

    def _fail(self, record: Record) -> Record:
        self.ledger.fail(record)
        self.tally.by_state["failed"] += 1
        return record

    def _died(self, line: Line, error: str) -> Dead:
        dead = Dead(
            f"teachers.{line.name}: {line.teacher.base_url} has not answered for {line.teacher.patience_seconds:g} "
            f"seconds ({error}); what is done is kept: run the same command when it is back"
        )
        if len(self.lines) == 1:
            self.halt(dead)
        return dead

    async def _turn(self, line: Line, tokens: float) -> Ticket:
        """Wait until the pace allows another request."""
        while True:
            if self.stop is not None:
                raise self.stop
            now = time.monotonic()
            wait = line.pace.wait(now)
            if wait <= 0:
                return line.pace.start(tokens, now)
            line.changed.clear()
            await self._changed(line.changed, wait)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past the end of the run."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.stop is not None:
                raise self.stop
            await asyncio.sleep(min(left, POLL_SECONDS))

    @staticmethod
    async def _changed(event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), min(seconds, 5.0))

    def _reserve(self, line: Line, question: Question) -> Reserve:
        """The most a question can take: no tokenizer makes more tokens than there are bytes."""
        prompt, answer = prompt_bytes(question), most_answer_tokens(question)
        return Reserve(prompt + answer, line.teacher.cost(prompt, answer))

    def _fill(self, record: Record, line: Line, question: Question, reply: Reply) -> None:
        """State, tokens and cost of an answer."""
        found = content(reply.body)
        record.response = reply.raw
        record.state, record.error = judge(found)
        size, most = prompt_bytes(question), most_answer_tokens(question)
        said = (found.prompt_tokens, found.answer_tokens)
        plausible = said[0] is not None and said[1] is not None and 0 < said[0] <= size and 0 <= said[1] <= most
        record.counted = "reported" if plausible else "estimated"
        if plausible:
            record.prompt_tokens, record.answer_tokens = said[0] or 0, said[1] or 0
        else:  # figures that cannot be: a quarter of the bytes is usual for English, and a third is careful
            written = len((found.text + found.reasoning).encode("utf-8", "replace"))
            record.prompt_tokens, record.answer_tokens = size // 3 + 1, min(written // 3 + 1, most)
        record.cost = line.teacher.cost(record.prompt_tokens, record.answer_tokens)
        line.answers += 1
        line.answer_tokens += record.answer_tokens
        line.prompt_bytes += size
        line.prompt_tokens += record.prompt_tokens

    def _answer(self, record: Record) -> Answer:
        """What a record says."""
        try:
            found = content(json.loads(record.response)) if record.response else None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            found = None  # the last thing a failed request got was no answer
        text, reasoning = split_reasoning(found) if found else ("", "")
        return Answer(record.state, text, reasoning, record.error, record.teacher, record.key)


def prompt_bytes(question: Question) -> int:
    """An upper bound of a prompt's tokens."""
    size = sum(len(m["content"].encode("utf-8", "replace")) + TURN_TOKENS for m in question.messages)
    return size + (len(canonical(question.schema)) if question.schema is not None else 0)


def most_answer_tokens(question: Question) -> int:
    """An upper bound of an answer's tokens."""
    limit = question.sampling.get("max_tokens") or question.sampling.get("max_completion_tokens")
    return int(limit or DEFAULT_ANSWER_TOKENS)


def judge(found: Content) -> tuple[State, str]:
    """The state of an answer, and why it is not ok."""
    if found.refusal:
        return "refused", f"the teacher refused: {found.refusal[:200]}"
    if found.finish == "content_filter":
        return "refused", "the endpoint's filter stopped the answer"
    if found.finish == "length":
        return "truncated", "the answer reached max_tokens"
    text, reasoning = split_reasoning(found)
    if not text.strip():
        return "unparsable", "the answer is empty" + (" after its reasoning" if reasoning else "")
    return "ok", ""


def split_reasoning(found: Content) -> tuple[str, str]:
    """(answer, reasoning): the trace apart, whether it has a field of its own or stands between tags."""
    begin, end = THINK
    text = found.text
    if found.reasoning or (end not in text and begin not in text):
        return text, found.reasoning
    before, _, rest = text.partition(begin) if begin in text else ("", "", text)  # some templates open it in the prompt
    trace, closed, after = rest.partition(end)
    return (before + after.lstrip() if closed else before), trace.strip()
