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
from interlace.distill.endpoint import Content, Limited, Outcome, Reply, Trouble, content, request_body
from interlace.distill.ledger import Exhausted, Ledger, Limits, Record, Reserve, State, canonical, digest
from interlace.distill.teacher import Teacher

TURN_TOKENS = 16  # around each message: roles and marks
TEMPLATE_TOKENS = 128  # that an endpoint's template may add to a prompt, as long as nothing else was seen
HIDDEN = 200_000  # tokens beyond what was asked for that a count may hold: reasoning that is not shown, templates
DEFAULT_ANSWER_TOKENS = 4096  # reserved where a question sets no max_tokens
POLL_SECONDS = 0.5
RECOVER_SECONDS = 5.0
SAVE_SECONDS = 1.0  # between savings of the limits that were found
FRESH_SECONDS = 600.0  # for which they are believed
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
    more_prompt: int = TEMPLATE_TOKENS
    more_answer: int = 0
    error: str = ""  # the last one
    saved: float = 0.0  # when the limits that were found last were

    @property
    def kept(self) -> str:
        """The name of its limits in the ledger."""
        return f"limits of {digest(self.identity)}"

    def reserve(self, question: Question) -> Reserve:
        """The most a question can take: no tokenizer makes more tokens than there are bytes."""
        prompt = prompt_bytes(question) + self.more_prompt
        answer = most_answer_tokens(question) + self.more_answer
        return Reserve(prompt + answer, self.teacher.cost(prompt, answer))

    def learn(self, question: Question, record: Record) -> None:
        """From an answer: what the next may take, and how far its tokens are beyond what was asked for."""
        size = prompt_bytes(question)
        self.answers += 1
        self.answer_tokens += record.answer_tokens
        self.prompt_bytes += size
        self.prompt_tokens += record.prompt_tokens
        self.more_prompt = max(self.more_prompt, record.prompt_tokens - size)
        self.more_answer = max(self.more_answer, record.answer_tokens - most_answer_tokens(question))

    def expected(self, question: Question) -> float:
        """Tokens that a question will about take, from those before it."""
        size = prompt_bytes(question)
        prompt = size * (self.prompt_tokens / self.prompt_bytes if self.prompt_bytes else 0.3)
        most = most_answer_tokens(question)
        return prompt + (min(self.answer_tokens / self.answers, most) if self.answers else most)


@dataclass
class Request:
    """A question on its way to one teacher.

    Attributes:
        asked: the body as the ledger keeps it.
        reserve: the most it can take.
        record: what became of it so far.
    """

    line: Line
    question: Question
    body: dict[str, Any]
    asked: str
    reserve: Reserve
    record: Record


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
        for line in self.lines.values():
            known = ledger.recall(line.kept)
            if known is not None and known[0] < FRESH_SECONDS:
                line.pace.resume(known[1], known[0], time.monotonic())
        self.tally = Tally()
        self.stop: InterlaceError | None = None
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._draw = random.Random()
        self._recovered = time.monotonic()
        self._ended = asyncio.Event()  # something in flight has
        self._budget = asyncio.Lock()

    def halt(self, reason: InterlaceError) -> None:
        """Send nothing new; the first reason counts."""
        self.stop = self.stop or reason
        self._ended.set()
        for line in self.lines.values():
            line.changed.set()

    async def ask(self, teachers: Sequence[str], question: Question) -> Answer:
        """The answer of the first teacher that does not fail; the last one's failure if all do.

        Raises:
            Stopped, Exhausted, Dead: the run is to end.
        """
        keys: list[str] = []
        for name in teachers[:-1]:
            with contextlib.suppress(Dead):  # its breaker is open: the next in line answers meanwhile
                record = await self._settle(self.lines[name], question, patient=False)
                if record.state != "failed":
                    return self._answer(record, keys)
                keys.append(record.key)
        return self._answer(await self._settle(self.lines[teachers[-1]], question, patient=True), keys)

    def key(self, line: Line, question: Question) -> str:
        """The hash that a question is known by."""
        parts = {"teacher": line.identity, "messages": list(question.messages), "sampling": question.sampling}
        return digest({**parts, "schema": question.schema, "sample": question.sample})

    async def _settle(self, line: Line, question: Question, patient: bool) -> Record:
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
                made = await self._send(line, key, question, patient)
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
        self._recover()

    def _recover(self) -> None:
        """Now and then, see whether a process has gone that held something."""
        if time.monotonic() - self._recovered > RECOVER_SECONDS:
            self._recovered = time.monotonic()
            self.ledger.recover()

    async def _send(self, line: Line, key: str, question: Question, patient: bool) -> Record | None:
        """Send until there is an answer, or no more sense in trying; None if another process was faster."""
        request = self._request(line, key, question)
        record = request.record
        began = None
        while (ticket := await self._claim(request, patient)) is not None:
            began = began or ticket.sent
            outcome = await self._out(request, ticket)
            now = time.monotonic()
            record.seconds = now - began
            if isinstance(outcome, Reply):
                return self._answered(request, ticket, outcome, now)
            if isinstance(outcome, Limited):
                self._sent_back(request, ticket, outcome, now)
                continue
            if self._failed(request, ticket, outcome, now):
                return record
            if line.pace.dead_for(now) > 0 and not patient:
                raise Dead(f"teachers.{line.name}: {outcome.error}")
            await self._pause(max(backoff(record.tries, self._draw), outcome.retry_after or 0.0))
        return None

    def _request(self, line: Line, key: str, question: Question) -> Request:
        body = request_body(line.teacher, question)
        if line.teacher.kind == "local":  # draws from a seed of its own, so that it answers the same again
            body["seed"] = int(key[:8], 16)
        asked = canonical({**body, "sample": question.sample})
        return Request(line, question, body, asked, line.reserve(question), Record(key, line.name, "failed"))

    async def _claim(self, request: Request, patient: bool) -> Ticket | None:
        """A place among those in flight and in the budget; None where another process has asked, or is about to."""
        ticket = await self._turn(request, patient)
        if (mine := self._in_budget(request, ticket)) is None:
            async with self._budget:  # one waits for what is held back to come free, the others for the one
                while mine is None:
                    if self.stop is not None:
                        raise self.stop
                    self._ended.clear()
                    await self._changed(self._ended, POLL_SECONDS)
                    self._recover()
                    ticket = await self._turn(request, patient)
                    mine = self._in_budget(request, ticket)
        return ticket if mine else None

    def _in_budget(self, request: Request, ticket: Ticket) -> bool | None:
        """Whether a request is ours to send; None if the budget may allow it once others in flight have ended."""
        key, line = request.record.key, request.line
        mine: bool | None = None
        request.reserve = line.reserve(request.question)  # as is known by now
        try:
            mine = self.ledger.claim(key, line.name, request.asked, request.reserve, self.limits)
        except Exhausted as error:
            if not error.passing:
                self.halt(error)
                raise
        finally:
            if not mine:
                line.pace.unsent(ticket)
        return mine

    async def _out(self, request: Request, ticket: Ticket) -> Outcome:
        """Send once; an error of the whole run gives the claim back."""
        line = request.line
        self.tally.in_flight += 1
        try:
            return await line.transport.send(request.body)
        except Exception as error:
            line.pace.unsent(ticket)
            self.ledger.give_up_try(request.record.key, request.reserve, not isinstance(error, InterlaceError))
            self.halt(error if isinstance(error, InterlaceError) else Failure(f"teachers.{line.name}: {error!r}"))
            raise
        except BaseException:
            line.pace.unsent(ticket)
            raise
        finally:
            self.tally.in_flight -= 1
            line.changed.set()
            self._ended.set()

    def _answered(self, request: Request, ticket: Ticket, reply: Reply, now: float) -> Record:
        record, line = request.record, request.line
        record.tries += 1
        self._fill(request, reply)
        line.pace.success(ticket, record.tokens, now)
        self.ledger.finish(record, request.reserve)
        self.tally.by_state[record.state] += 1
        if now - line.saved > SAVE_SECONDS and (limits := line.pace.limits()):
            line.saved = now
            self.ledger.keep(line.kept, limits)
        return record

    def _sent_back(self, request: Request, ticket: Ticket, outcome: Limited, now: float) -> None:
        """A rate limit; the run ends where nothing else has come for as long as the teacher's table allows."""
        line = request.line
        request.record.waits += 1
        self.tally.limited += 1
        line.pace.limited(ticket, outcome.kind, outcome.retry_after, now)
        self.ledger.unclaim(request.record.key, request.reserve)
        if line.pace.limited_for(now) > line.teacher.patience_seconds + (outcome.retry_after or 0.0):
            error = Failure(
                f"teachers.{line.name}: every request of the last {line.pace.limited_for(now):.0f} seconds was sent "
                f"back for a rate limit ({outcome.error or outcome.kind}); what is done is kept: run the same command "
                f"later, or raise teachers.{line.name}.patience_seconds"
            )
            self.halt(error)
            raise error

    def _failed(self, request: Request, ticket: Ticket, outcome: Trouble, now: float) -> bool:
        """Whether a request that got no answer gets no other try either."""
        record, line = request.record, request.line
        record.tries += 1
        record.error, record.response, line.error = outcome.error, outcome.raw, outcome.error
        self.tally.errors[outcome.error.split(":")[0][:40]] += 1
        self.ledger.give_up_try(record.key, request.reserve, outcome.charged)
        if outcome.alive:
            line.pace.answered(ticket)
        else:
            line.pace.trouble(ticket, now)
        if outcome.passing and (record.tries < line.teacher.tries or line.pace.dead_for(now) > 0):
            return False
        self.ledger.fail(record)
        self.tally.by_state["failed"] += 1
        return True

    async def _turn(self, request: Request, patient: bool) -> Ticket:
        """Wait until the pace allows another request.

        Raises:
            Dead: the endpoint is, and this is the last teacher to ask and has been waited for (`patient`), or is not.
        """
        line = request.line
        while True:
            if self.stop is not None:
                raise self.stop
            now = time.monotonic()
            wait, dead = line.pace.wait(now), line.pace.dead_for(now)
            gone = patient and dead > line.teacher.patience_seconds
            if wait <= 0 and not gone:
                return line.pace.start(line.expected(request.question), now)
            if gone or (dead > 0 and not patient):
                raise Dead(
                    f"teachers.{line.name}: {line.teacher.base_url} has not answered for {dead:.1f} seconds "
                    f"({line.error}); what is done is kept: run the same command when it is back"
                )
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

    def _fill(self, request: Request, reply: Reply) -> None:
        """State, tokens and cost of an answer."""
        record, line, question = request.record, request.line, request.question
        record.response = reply.raw
        found = content(reply.body)
        record.state, record.error = judge(found)
        size, most = prompt_bytes(question), most_answer_tokens(question)
        if plausible(found.prompt_tokens, 2 * size + HIDDEN) and plausible(found.answer_tokens, most + HIDDEN):
            record.counted = "reported"
            record.prompt_tokens, record.answer_tokens = found.prompt_tokens or 0, found.answer_tokens or 0
        else:  # figures that cannot be: a quarter of the bytes is usual for English, and a third is careful
            written = len((found.text + found.reasoning).encode("utf-8", "replace"))
            record.counted = "estimated"
            record.prompt_tokens, record.answer_tokens = size // 3 + 1, min(written // 3 + 1, most)
        record.cost = line.teacher.cost(record.prompt_tokens, record.answer_tokens)
        line.learn(question, record)

    def _answer(self, record: Record, before: Sequence[str]) -> Answer:
        """What a record says."""
        try:
            found = content(json.loads(record.response)) if record.response else None
        except (ValueError, LookupError, TypeError):
            found = None  # the last thing a failed request got was no answer
        text, reasoning = split_reasoning(found) if found else ("", "")
        return Answer(record.state, text, reasoning, record.error, record.teacher, (*before, record.key))


def prompt_bytes(question: Question) -> int:
    """An upper bound of a prompt's tokens, but for what the endpoint's own template adds."""
    size = sum(len(m["content"].encode("utf-8", "replace")) + TURN_TOKENS for m in question.messages)
    return size + (len(canonical(question.schema)) if question.schema is not None else 0)


def most_answer_tokens(question: Question) -> int:
    """An upper bound of an answer's tokens."""
    limits = [question.sampling.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return max([int(x) for x in limits if x] or [DEFAULT_ANSWER_TOKENS])


def plausible(tokens: int | None, most: int) -> bool:
    """Whether a teacher's figure can be."""
    return tokens is not None and 0 <= tokens <= most


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
