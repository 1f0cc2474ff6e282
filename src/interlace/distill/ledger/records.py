"""What a ledger holds, as plain records: requests, rows, and a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from interlace.base.errors import Failure

State = Literal["ok", "truncated", "refused", "unparsable", "failed"]
STATES: tuple[State, ...] = ("ok", "truncated", "refused", "unparsable", "failed")


@dataclass
class Record:
    """What became of a request.

    Attributes:
        key: hash of its canonical JSON.
        teacher: who was asked.
        state: one of STATES.
        response: what came back, as it came; "" if nothing did.
        error: why it is not "ok".
        prompt_tokens, answer_tokens: as the teacher counted, or estimated.
        counted: "reported" by the teacher, or "estimated" where its figures are missing or cannot be.
        cost: in USD.
        seconds: from the first try to the answer, waiting for rate limits included.
        tries: how often it was sent; waits: how often it was sent back for a rate limit.
    """

    key: str
    teacher: str
    state: State
    response: str = ""
    error: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    counted: str = "reported"
    cost: float = 0.0
    seconds: float = 0.0
    tries: int = 0
    waits: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class Reserve:
    """The most that a request can take; held back from the budget while it is in flight."""

    tokens: int
    cost: float


@dataclass(frozen=True)
class Limits:
    """Hard limits of a run; None for none. Requests lost in flight count in full."""

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Spent:
    """What a run has taken from its budget.

    Attributes:
        requests, tokens, cost: of answers that came.
        reserved_*: held back for what is in flight.
        lost_*: held back for what was in flight when a process was killed: it may have been charged, nobody knows.
    """

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0
    reserved_requests: int = 0
    reserved_tokens: int = 0
    reserved_cost: float = 0.0
    lost_requests: int = 0
    lost_tokens: int = 0
    lost_cost: float = 0.0


class Exhausted(Failure):
    """The budget does not allow another request.

    passing: whether it may, once what is in flight has ended and took less than was held back for it.
    """

    def __init__(self, message: str, passing: bool):
        """Say why."""
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Row:
    """A row at the end of a step.

    Attributes:
        id: grows with time.
        key: the same in every run of the same recipe; sorts as the rows of the source lie.
        state: "ok" if it went on, "dropped", or one of STATES that ended it.
        reason: why it ended.
        values: every column it has.
    """

    id: int
    key: str
    state: str
    reason: str
    values: dict[str, Any]


@dataclass(frozen=True)
class NewRow:
    """A row to write; `parent` is the row it came from, and `delta` the columns that are new or changed."""

    key: str
    delta: dict[str, Any]
    parent: int | None = None
    state: str = "ok"
    reason: str = ""
    requests: tuple[str, ...] = ()


def check_budget(spent: Spent, reserve: Reserve, limits: Limits) -> None:
    """Raise Exhausted where another request could pass a limit."""
    for name, more, unit in (("requests", 1, ""), ("tokens", reserve.tokens, ""), ("cost", reserve.cost, " USD")):
        limit = getattr(limits, name)
        if limit is None:
            continue
        used, lost = getattr(spent, name), getattr(spent, f"lost_{name}")
        held = getattr(spent, f"reserved_{name}")
        if used + lost + held + more > limit:
            form = "{:.4f}" if name == "cost" else "{:,}"
            said = f"{form.format(used)} spent"
            said += f", {form.format(lost)} perhaps charged for requests lost in flight" if lost else ""
            said += f", {form.format(held)} held for requests in flight" if held else ""
            raise Exhausted(
                f"max_{name}: {said}, and the next request can take {form.format(more)}, which would pass "
                f"{form.format(limit)}{unit}; raise it in the recipe and run the same command",
                used + lost + more <= limit,
            )
