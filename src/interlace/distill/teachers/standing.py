"""Whether it is one question that a teacher refuses, or whatever is asked: the other questions tell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

FEW, MANY = 3, 30  # neighbouring rows are often alike, so that several of them may be refused
HEARD, MOST_HEARD = 16, 1024  # different questions are asked before a run ends, if so many are in hand


@dataclass(frozen=True)
class Doubt:
    """What would end a run, if every question met it.

    Attributes:
        what: became of the questions, as in "3 questions were {what}".
        remedy: what to do about it.
        first: different questions that must meet it, while nothing was ever answered.
        later: those in a row, where others were answered before.
        free: whether nothing is charged for a question that meets it, so that more of them are asked.
    """

    what: str
    remedy: str
    first: int = FEW
    later: int = MANY
    free: bool = True


@dataclass
class Standing:
    """What one teacher has answered and refused.

    Attributes:
        known: whether it has ever answered, in earlier runs too.
        answered: whether it has in this one.
        hear: different questions that are asked before the run ends; twice as many as were refused when it last did.
        refused: questions that were since the last answer.
    """

    known: bool = False
    answered: bool = False
    hear: int = HEARD
    refused: set[str] = field(default_factory=set)
    _in_hand: dict[str, bool] = field(default_factory=dict)  # whether it is in flight
    _unheard: set[str] | None = None  # that still decide
    _alone: set[str] = field(default_factory=set)  # in hand, refused before others were answered

    @contextlib.contextmanager
    def in_hand(self, question: str) -> Iterator[None]:
        """While a question is being asked, waiting for its turn and other tries included."""
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
        """While a question is on its way."""
        self._in_hand[question] = True
        try:
            yield
        finally:
            self._in_hand[question] = False

    def holds_back(self, question: str) -> bool:
        """Whether a question waits until those in flight have told what the refusals were."""
        unheard = self._unheard or ()
        return question not in unheard and any(self._in_hand.get(q) for q in unheard)

    def ended_at(self, questions: int) -> None:
        """The last run ended when so many were refused, so that more are asked this time."""
        self.hear = min(max(HEARD, 2 * questions), MOST_HEARD)

    def answer(self) -> None:
        """One was answered, so what was refused before it was refused alone."""
        self.known = self.answered = True
        self._alone |= self.refused & self._in_hand.keys()
        self.refused.clear()
        self._unheard = None

    def refuse(self, question: str, doubt: Doubt) -> str:
        """Why the run ends: so many were refused, and none that is in flight, or soon to be, can still be answered."""
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
