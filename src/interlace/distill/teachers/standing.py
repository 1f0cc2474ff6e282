"""Decide whether a teacher refuses one question or whatever is asked; the answers to other questions tell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

FEW, MANY = 3, 30  # refusals in a row; neighbouring rows are often alike, so several may be refused
HEARD, MOST_HEARD = 16, 1024  # different questions are asked before a run ends, if so many are in hand


@dataclass(frozen=True)
class Doubt:
    """A reason that would end the run if every question met it.

    Attributes:
        what: completes the sentence "3 questions were {what}".
        remedy: what to do about it.
        first: how many different questions must meet it while nothing was ever answered.
        later: how many in a row must meet it if others were answered before.
        free: whether a question that meets it is not charged; then more questions are asked before the run ends.
    """

    what: str
    remedy: str
    first: int = FEW
    later: int = MANY
    free: bool = True


@dataclass
class Standing:
    """The answers and refusals of one teacher.

    Attributes:
        known: whether it has ever answered, in earlier runs too.
        answered: whether it has answered in this run.
        hear: how many different questions are asked before the run ends; twice as many as were refused when the last
            run ended for refusals.
        refused: questions that were refused since the last answer.
    """

    known: bool = False
    answered: bool = False
    hear: int = HEARD
    refused: set[str] = field(default_factory=set)
    _in_hand: dict[str, bool] = field(default_factory=dict)  # question: whether it is in flight
    _unheard: set[str] | None = None  # questions whose results still decide
    _alone: set[str] = field(default_factory=set)  # in hand, refused before others were answered

    @contextlib.contextmanager
    def in_hand(self, question: str) -> Iterator[None]:
        """Mark a question as being asked, which includes waiting for its turn and retries."""
        self._in_hand[question] = False
        try:
            yield
        finally:
            del self._in_hand[question]
            self._alone.discard(question)
            if self._unheard is not None:
                self._unheard.discard(question)

    @contextlib.contextmanager
    def in_flight(self, question: str) -> Iterator[None]:
        """Mark a question as in flight."""
        self._in_hand[question] = True
        try:
            yield
        finally:
            self._in_hand[question] = False

    def holds_back(self, question: str) -> bool:
        """Return whether a question must wait until questions in flight have shown what the refusals mean."""
        unheard = self._unheard or ()
        return question not in unheard and any(self._in_hand.get(q) for q in unheard)

    def ended_at(self, questions: int) -> None:
        """Ask more questions this time: the last run ended when so many were refused."""
        self.hear = min(max(HEARD, 2 * questions), MOST_HEARD)

    def answer(self) -> None:
        """Record an answer: refusals before it were about those questions alone."""
        self.known = self.answered = True
        self._alone |= self.refused & self._in_hand.keys()
        self.refused.clear()
        self._unheard = None

    def refuse(self, question: str, doubt: Doubt) -> str:
        """Record a refusal; return why the run ends, or "" if it goes on.

        It ends when enough questions were refused, and none in flight, or soon to be sent, can still be answered.
        """
        if question in self._alone:
            return ""
        self.refused.add(question)
        count = len(self.refused)
        if count < (doubt.later if self.known else doubt.first):
            return ""
        if self._unheard is None:
            others = [q for q in self._in_hand if q not in self.refused]
            others.sort(key=lambda q: not self._in_hand[q])
            out = sum(self._in_hand[q] for q in others)
            self._unheard = set(others[: max(out, self.hear - count if doubt.free else 0)])
        self._unheard -= self.refused
        if self._unheard:
            return ""
        said = f"{count} different questions in a row were" if count > 1 else "a question was"
        return f"{said} {doubt.what}; {doubt.remedy}"
