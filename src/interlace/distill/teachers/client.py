"""Ask teachers.

A question is looked up in the ledger first. If it has no answer, it waits for the rate limit, is reserved in the
budget, and is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from interlace.base.errors import ConfigError, Failure, InterlaceError
from interlace.base.text import canonical, digest
from interlace.distill.desk import Answer, Question
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import Exhausted, Limits, Record
from interlace.distill.teachers.endpoint import request_body
from interlace.distill.teachers.line import Line, Request, Tally, Transport
from interlace.distill.teachers.outcomes import (
    Limited,
    Outcome,
    Reply,
    Trouble,
    content,
)
from interlace.distill.teachers.questions import counted, judge, split_reasoning
from interlace.distill.teachers.rate import RateControl, Ticket, backoff
from interlace.distill.teachers.teacher import Teacher

POLL_SECONDS = 0.5
RECOVER_SECONDS = 5.0
# The next process starts at the stored rate and does not meet the limit first. With this and a shorter start, ten kills
# cost 5 % of the rate instead of 9 % (docs/LOG.md).
SAVE_SECONDS = 1.0  # between two times that the rate limits are stored
FRESH_SECONDS = 600.0  # age at which stored rate limits are no longer used


class Stopped(Failure):
    """The run was asked to stop; nothing new is sent."""

    exit_code = 130


class Dead(Failure):
    """An endpoint has not answered for longer than its table allows (patience_seconds)."""


class Client:
    """Asks teachers, and sends each question once."""

    def __init__(
        self, ledger: Ledger, teachers: Mapping[str, Teacher], transports: Mapping[str, Transport], limits: Limits
    ):
        """Read the stored rate limits and refusals of each teacher.

        transports: what sends to each teacher, by its name.
        """
        self.ledger, self.limits = ledger, limits
        self.lines = {
            name: Line(name, t, t.identity(), transports[name], RateControl(t.connections))
            for name, t in teachers.items()
        }
        for line in self.lines.values():
            known = ledger.recall(line.kept)
            if known is not None and known[0] < FRESH_SECONDS:
                line.pace.resume(known[1], known[0], time.monotonic())
            if (beyond := ledger.recall(line.beyond)) is not None:
                line.more_prompt = max(line.more_prompt, int(beyond[1].get("prompt", 0)))
                line.more_answer = max(line.more_answer, int(beyond[1].get("answer", 0)))
                line.standing.known = True  # `beyond` is stored with the first answer
            if (ended := ledger.recall(line.ended)) is not None:
                line.standing.ended_at(int(ended[1].get("questions", 0)))
        self.tally = Tally()
        self.stop: InterlaceError | None = None
        self._asked: dict[str, asyncio.Future[None]] = {}
        self._draw = random.Random()
        self._recovered = time.monotonic()
        self._ended = asyncio.Event()  # a request in flight has ended
        self._budget = asyncio.Lock()

    def halt(self, reason: InterlaceError) -> None:
        """Stop sending anything new; the first reason is the one that is reported."""
        self.stop = self.stop or reason
        self._ended.set()
        for line in self.lines.values():
            line.changed.set()

    async def ask(self, teachers: Sequence[str], question: Question) -> Answer:
        """Return the answer of the first teacher that does not fail, or the last teacher's failure if all do.

        Raises:
            Stopped, Exhausted, Dead: the run is to end.
        """
        keys: list[str] = []
        for name in teachers[:-1]:
            with contextlib.suppress(Dead):  # its breaker is open: fall back to the next one
                record = await self._settle(self.lines[name], question, patient=False)
                if record.state != "failed":
                    return self._answer(record, keys)
                keys.append(record.key)
        return self._answer(await self._settle(self.lines[teachers[-1]], question, patient=True), keys)

    def key(self, line: Line, question: Question) -> str:
        """Return the hash that identifies a question to this teacher."""
        parts = {"teacher": line.identity, "messages": list(question.messages), "sampling": question.sampling}
        return digest({**parts, "schema": question.schema, "sample": question.sample})

    async def _settle(self, line: Line, question: Question, patient: bool) -> Record:
        """Return the record of a question: from the ledger, from a task that asks it already, or from the teacher."""
        key = self.key(line, question)
        while True:
            found = self.ledger.requests.find(key)
            if found is not None:
                self.tally.reused += 1
                return found
            if key in self._asked:
                await asyncio.wait([self._asked[key]])
                continue
            self._asked[key] = asyncio.get_running_loop().create_future()
            try:
                with line.standing.in_hand(key):
                    made = await self._send(line, key, question, patient)
            finally:
                self._asked.pop(key).set_result(None)
                line.changed.set()
            if made is not None:
                return made
            await self._elsewhere()

    async def _elsewhere(self) -> None:
        """Wait a little while another process asks the same question, and check whether that process is gone."""
        if self.stop is not None:
            raise self.stop
        await asyncio.sleep(POLL_SECONDS)
        self._recover()

    def _recover(self) -> None:
        """Check every RECOVER_SECONDS whether a process with requests in flight is gone."""
        if time.monotonic() - self._recovered > RECOVER_SECONDS:
            self._recovered = time.monotonic()
            self.ledger.recover()

    async def _send(self, line: Line, key: str, question: Question, patient: bool) -> Record | None:
        """Send and retry until there is an answer or a final failure; return None if another process was faster."""
        request = self._request(line, key, question)
        record = request.record
        began = None
        while True:
            async with self._alone(line):
                if (ticket := await self._claim(request, patient)) is None:
                    return None
                began = began or ticket.sent
                outcome = await self._out(request, ticket)
            now = time.monotonic()
            record.seconds = now - began
            if isinstance(outcome, Reply):
                return self._answered(request, ticket, outcome, now)
            if isinstance(outcome, Limited):
                await self._pause(self._sent_back(request, ticket, outcome, now))
                continue
            if self._failed(request, ticket, outcome, now):
                return record
            if line.pace.dead_for(now) > 0 and not patient:
                raise Dead(f"teachers.{line.name}: {outcome.error}")
            await self._pause(max(backoff(record.tries, self._draw), outcome.retry_after or 0.0))

    def _alone(self, line: Line) -> contextlib.AbstractAsyncContextManager[Any]:
        """Return a lock that lets a teacher's first request go alone if tokens or cost are limited.

        Until an answer has come, nobody knows how many tokens the teacher counts beyond what was reserved.
        """
        bound = self.limits.tokens is not None or self.limits.cost is not None
        known = line.answers or line.teacher.kind == "local" or self.ledger.recall(line.beyond) is not None
        return contextlib.nullcontext() if known or not bound else line.first

    def _request(self, line: Line, key: str, question: Question) -> Request:
        body = request_body(line.teacher, question)
        if line.teacher.kind == "local":  # a seed from the key: the same request gets the same answer
            body["seed"] = int(key[:8], 16)
        asked = canonical({**body, "sample": question.sample})
        return Request(line, question, body, asked, line.reserve(question), Record(key, line.name, "failed"))

    async def _claim(self, request: Request, patient: bool) -> Ticket | None:
        """Reserve a place in flight and in the budget; return None if another process has asked, or is asking."""
        ticket = await self._turn(request, patient)
        if (mine := self._in_budget(request, ticket)) is None:
            async with self._budget:  # one request waits until reserves are released, the others wait for the lock
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
        """Return whether the request is ours to send; None if the budget may allow it when others in flight end."""
        key, line = request.record.key, request.line
        mine: bool | None = None
        request.reserve = line.reserve(request.question)  # answers since may have raised it
        try:
            mine = self.ledger.requests.claim(key, line.name, request.asked, request.reserve, self.limits)
        except Exhausted as error:
            if not error.passing:
                self.halt(error)
                raise
        finally:
            if not mine:
                line.pace.unsent(ticket)
        return mine

    async def _out(self, request: Request, ticket: Ticket) -> Outcome:
        """Send once; an error that ends the whole run takes the claim back."""
        line = request.line
        self.tally.in_flight += 1
        try:
            with line.standing.in_flight(request.record.key):
                return await line.transport.send(request.body)
        except Exception as error:
            line.pace.unsent(ticket)
            self.ledger.requests.release_try(request.record.key, request.reserve, not isinstance(error, InterlaceError))
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
        line.standing.answer()
        self._fill(request, reply)
        line.pace.success(ticket, record.tokens, now)
        self.ledger.requests.finish(record, request.reserve)
        self.tally.by_state[record.state] += 1
        if now - line.saved > SAVE_SECONDS and (limits := line.pace.limits()):
            line.saved = now
            self.ledger.keep(line.kept, limits)
        return record

    def _sent_back(self, request: Request, ticket: Ticket, outcome: Limited, now: float) -> float:
        """Count a rejection for a rate limit; return the seconds that this request should wait.

        Raises:
            Failure: the endpoint has returned only rate limits for patience_seconds.
        """
        line = request.line
        request.record.waits += 1
        self.tally.limited += 1
        own = line.pace.limited(ticket, outcome.kind, outcome.retry_after, now)
        self.ledger.requests.unclaim(request.record.key, request.reserve)
        if line.pace.limited_for(now) > line.teacher.patience_seconds + (outcome.retry_after or 0.0):
            error = Failure(
                f"teachers.{line.name}: every request to {line.teacher.base_url} of the last "
                f"{line.pace.limited_for(now):.0f} seconds was sent back for a rate limit "
                f"({outcome.error or outcome.kind}); what is done is kept: run the same command "
                f"later, or raise teachers.{line.name}.patience_seconds"
            )
            self.halt(error)
            raise error
        return own

    def _failed(self, request: Request, ticket: Ticket, outcome: Trouble, now: float) -> bool:
        """Record a try that failed; return True if the request is not tried again.

        Raises:
            ConfigError: the teacher refuses whatever is asked.
        """
        record, line = request.record, request.line
        record.tries += 1
        record.error, record.response, line.error = outcome.error, outcome.raw, outcome.error
        self.tally.errors[outcome.error.split(":")[0][:40]] += 1
        self.ledger.requests.release_try(record.key, request.reserve, outcome.charged)
        if outcome.alive:
            line.pace.answered(ticket)
        else:
            line.pace.trouble(ticket, now)
        passing = outcome.passing
        if outcome.doubt is not None:
            if why := line.standing.refuse(record.key, outcome.doubt):
                self.ledger.keep(line.ended, {"questions": len(line.standing.refused)})
                error = ConfigError(f"teachers.{line.name}: {why}")
                self.halt(error)
                raise error
            passing = passing or not line.standing.answered  # retry until it is clear whether the question is the cause
        if passing and (record.tries < line.teacher.tries or line.pace.dead_for(now) > 0):
            return False
        record.state = "refused" if outcome.refused else "failed"
        self.ledger.requests.fail(record)
        self.tally.by_state[record.state] += 1
        return True

    async def _turn(self, request: Request, patient: bool) -> Ticket:
        """Wait until the rate allows another request.

        patient: this is the last teacher that can be asked, so a dead endpoint is waited for.

        Raises:
            Dead: the endpoint is dead, and was waited for if `patient`.
        """
        line = request.line
        while True:
            if self.stop is not None:
                raise self.stop
            now = time.monotonic()
            wait, dead = line.pace.wait(now), line.pace.dead_for(now)
            gone = patient and dead > line.teacher.patience_seconds
            if line.standing.holds_back(request.record.key):
                wait = float("inf")
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
        """Wait, but not longer than the run."""
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
        """Set the state, tokens and cost of an answer."""
        record, line, question = request.record, request.line, request.question
        record.response = reply.raw
        found = content(reply.body)
        record.state, record.error = judge(found)
        record.counted, record.prompt_tokens, record.answer_tokens = counted(question, found)
        record.cost = line.teacher.cost(record.prompt_tokens, record.answer_tokens)
        before = (line.more_prompt, line.more_answer)
        line.learn(question, record)
        if before != (line.more_prompt, line.more_answer) or line.answers == 1:
            self.ledger.keep(line.beyond, {"prompt": line.more_prompt, "answer": line.more_answer})

    def _answer(self, record: Record, before: Sequence[str]) -> Answer:
        """Return the answer that a record holds."""
        try:
            found = content(json.loads(record.response)) if record.response else None
        except (ValueError, LookupError, TypeError):
            found = None  # a failed request ends with a response that is no answer
        text, reasoning = split_reasoning(found) if found else ("", "")
        return Answer(record.state, text, reasoning, record.error, record.teacher, (*before, record.key))
