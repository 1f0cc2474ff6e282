"""One teacher of a run: its table, its identity, its rate, and what its answers have taken so far."""

from __future__ import annotations

import asyncio
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

TEMPLATE_TOKENS = 128  # that an endpoint's template may add to a prompt, as long as nothing else was seen
LIMITED_SECONDS = 10.0  # of nothing but rate limits, from which on it is said


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
    pace: RateControl
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    answers: int = 0
    answer_tokens: int = 0
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    more_prompt: int = TEMPLATE_TOKENS
    more_answer: int = 0
    standing: Standing = field(default_factory=Standing)
    error: str = ""  # the last one
    first: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the request that nothing is known before
    saved: float = 0.0  # when the limits that were found last were

    @property
    def kept(self) -> str:
        """The name of its limits in the ledger."""
        return f"limits of {digest(self.identity)}"

    @property
    def beyond(self) -> str:
        """The name, in the ledger, of what its counts hold beyond what was asked for."""
        return f"beyond of {digest(self.identity)}"

    @property
    def ended(self) -> str:
        """The name, in the ledger, of how many questions were refused when a run ended for it."""
        return f"refused by {digest(self.identity)}"

    def silence(self, now: float) -> str:
        """What is being waited for where nothing is answered; empty while something is."""
        patience = f"up to {self.teacher.patience_seconds:g} seconds (teachers.{self.name}.patience_seconds)"
        if self.pace.dead_for(now) > 0:
            return f"teachers.{self.name}: {self.teacher.base_url} does not answer ({self.error}); waiting {patience}"
        if self.pace.limited_for(now) > LIMITED_SECONDS:
            sent_back = "sends every request back for a rate limit"
            return f"teachers.{self.name}: {self.teacher.base_url} {sent_back}; waiting {patience}"
        return ""

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
