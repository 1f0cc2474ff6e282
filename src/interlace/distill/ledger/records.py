"""What a ledger holds, as plain records: requests, rows, and a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from interlace.base.errors import Failure

State = Literal["ok", "truncated", "refused", "unparsable", "failed"]
STATES: tuple[State, ...] = ("ok", "truncated", "refused", "unparsable", "failed")


@dataclass
class Record:
    """A request and its result.

    Attributes:
        key: hash of its canonical JSON.
        teacher: the name of the teacher that was asked.
        state: one of STATES.
        response: the response, unchanged; "" if none came.
        error: why the state is not "ok".
        prompt_tokens, answer_tokens: as the teacher counted, or estimated.
        counted: "reported" by the teacher, or "estimated" if its counts are missing or impossible.
        cost: in USD.
        seconds: from the first try to the answer, waiting for rate limits included.
        tries: how often it was sent, without the sends that were rejected for a rate limit.
        waits: how often it was rejected for a rate limit.
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
        """Tokens of prompt and answer together."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class Reserve:
    """The most that a request can take; it is reserved in the budget while the request is in flight."""

    tokens: int
    cost: float


@dataclass(frozen=True)
class Limits:
    """Hard limits of a run; None for no limit. Requests that were lost in flight count in full."""

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Spent:
    """What a run has taken from its budget.

    Attributes:
        requests, tokens, cost: taken by requests that have ended.
        reserved_*: reserved for requests in flight.
        lost_*: reserved for requests that were in flight when a process was killed or a connection broke. They may have
            been charged; nobody knows.
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

    passing: whether it may allow it later, when requests in flight have ended and took less than was reserved for them.
    """

    def __init__(self, message: str, passing: bool):
        """Store the message and `passing`."""
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Row:
    """A row at the end of a step.

    Attributes:
        id: a number that grows with time.
        key: the same in every run of the same recipe; keys sort in the order of the source's rows.
        state: "ok" if the row goes on, "dropped", or the one of STATES that ended it.
        reason: why it ended.
        values: all its columns.
    """

    id: int
    key: str
    state: str
    reason: str
    values: dict[str, Any]


@dataclass(frozen=True)
class NewRow:
    """A row to write; `parent` is the row it came from, and `delta` holds the columns that are new or changed."""

    key: str
    delta: dict[str, Any]
    parent: int | None = None
    state: str = "ok"
    reason: str = ""
    requests: tuple[str, ...] = ()


def check_budget(spent: Spent, reserve: Reserve, limits: Limits) -> None:
    """Raise Exhausted if another request could pass a limit."""
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
