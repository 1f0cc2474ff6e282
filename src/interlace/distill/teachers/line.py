"""The state of one teacher in a run: its table, its identity, its rate, and what its answers have taken so far."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from interlace.base.text import digest
from interlace.distill.desk import Question
from interlace.distill.ledger.records import Record, Reserve
from interlace.distill.teachers.outcomes import (
    Outcome,
)
from interlace.distill.teachers.questions import most_answer_tokens, prompt_bytes
from interlace.distill.teachers.rate import RateControl
from interlace.distill.teachers.standing import Standing
from interlace.distill.teachers.teacher import Teacher

TEMPLATE_TOKENS = 128  # reserved for an endpoint's template, until its counts show more
LIMITED_SECONDS = 10.0  # of nothing but rate limits, after which the display says so


class Transport(Protocol):
    """Sends requests: an endpoint, or a checkpoint in this process."""

    async def send(self, body: dict[str, Any]) -> Outcome:
        """Send once and return the outcome."""

    async def close(self) -> None:
        """Release what the transport holds."""


@dataclass
class Line:
    """One teacher of a run.

    Attributes:
        name: the teacher's name in the recipe.
        identity: what makes two requests the same question to the same teacher.
        transport: sends the requests.
        pace: limits the rate and the requests in flight.
        changed: an event that is set when a waiting request should look again.
        answers, answer_tokens, prompt_bytes, prompt_tokens: sums over the answers of this process.
        more_prompt, more_answer: tokens that were counted beyond those of the prompt and of the answer, at most.
        standing: what the teacher answered and refused.
    """

    name: str
    teacher: Teacher
    identity: dict[str, str]
    transport: Transport
    pace: RateControl
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    answers: int = 0
    answer_tokens: int = 0
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    more_prompt: int = TEMPLATE_TOKENS
    more_answer: int = 0
    standing: Standing = field(default_factory=Standing)
    error: str = ""  # the last error
    first: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the first request under a budget
    saved: float = 0.0  # when the rate limits were last stored

    @property
    def kept(self) -> str:
        """The name under which the ledger stores its rate limits."""
        return f"limits of {digest(self.identity)}"

    @property
    def beyond(self) -> str:
        """The name under which the ledger stores `more_prompt` and `more_answer`."""
        return f"beyond of {digest(self.identity)}"

    @property
    def ended(self) -> str:
        """The name under which the ledger stores how many questions were refused when that ended a run."""
        return f"refused by {digest(self.identity)}"

    def silence(self, now: float) -> str:
        """Return a sentence on what the run waits for if nothing is answered; empty if something is."""
        patience = f"up to {self.teacher.patience_seconds:g} seconds (teachers.{self.name}.patience_seconds)"
        if self.pace.dead_for(now) > 0:
            return f"teachers.{self.name}: {self.teacher.base_url} does not answer ({self.error}); waiting {patience}"
        if self.pace.limited_for(now) > LIMITED_SECONDS:
            sent_back = "sends every request back for a rate limit"
            return f"teachers.{self.name}: {self.teacher.base_url} {sent_back}; waiting {patience}"
        return ""

    def reserve(self, question: Question) -> Reserve:
        """Return the most that a question can take: no tokenizer makes more tokens than there are bytes."""
        prompt = prompt_bytes(question) + self.more_prompt
        answer = most_answer_tokens(question) + self.more_answer
        return Reserve(prompt + answer, self.teacher.cost(prompt, answer))

    def learn(self, question: Question, record: Record) -> None:
        """Learn from an answer what the next may take, and how many tokens were counted beyond the bounds."""
        size = prompt_bytes(question)
        self.answers += 1
        self.answer_tokens += record.answer_tokens
        self.prompt_bytes += size
        self.prompt_tokens += record.prompt_tokens
        self.more_prompt = max(self.more_prompt, record.prompt_tokens - size)
        self.more_answer = max(self.more_answer, record.answer_tokens - most_answer_tokens(question))

    def expected(self, question: Question) -> float:
        """Return about how many tokens a question will take, judged by those before it."""
        size = prompt_bytes(question)
        prompt = size * (self.prompt_tokens / self.prompt_bytes if self.prompt_bytes else 0.3)
        most = most_answer_tokens(question)
        return prompt + (min(self.answer_tokens / self.answers, most) if self.answers else most)


@dataclass
class Request:
    """A question on its way to one teacher.

    Attributes:
        asked: the body as the ledger stores it.
        reserve: the most it can take.
        record: its result so far.
    """

    line: Line
    question: Question
    body: dict[str, Any]
    asked: str
    reserve: Reserve
    record: Record


@dataclass
class Tally:
    """Counts of this process alone, for the display.

    Attributes:
        by_state: answers by state, without those reused from the ledger.
        errors: errors by kind, including those that were retried.
        reused: answers that were in the ledger already.
        in_flight: requests in flight now.
        limited: requests that were rejected for a rate limit.
    """

    by_state: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    in_flight: int = 0
    limited: int = 0
