"""How fast to ask: the limits of an endpoint found by asking, and a breaker for one that is dead.

Requests in flight grow by one with every success until something goes wrong, then by one for each round. A rate limit,
of requests or of tokens, is not known until it is met: then the rate is set to a little less than what was let through,
and raised slowly (after additive increase and multiplicative decrease: Chiu and Jain, 1989), faster the more has been
let through since (as in CUBIC: Ha, Rhee, Xu, 2008). Nothing here sleeps or looks at a clock; times are handed in.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

FIRST_WINDOW = 8.0
BACK_OFF = 0.95  # of the rate that was let through
CLIMB = 0.01  # of the rate, added each second of sending; more the longer nothing was sent back
CALM_SECONDS = 10.0  # of sending, after which the climb is twice as steep, and five times after twice as long
MEASURED_SECONDS = 10.0
BURST_SECONDS = 1.0  # of the rate, that may be sent at once after a pause
TROUBLE = 0.25  # share of failures from which on fewer requests are kept in flight
BREAK = 10  # failures in a row that open the breaker
LONGEST_PAUSE = 60.0

Kind = Literal["requests", "tokens"]


@dataclass
class Rate:
    """Units per second that one kind of limit lets through.

    Attributes:
        limit: per second; None until a limit was met.
    """

    limit: float | None = None
    credit: float = 0.0
    filled: float = 0.0
    _used: float = 0.0  # seconds' worth that was let through since the last cut
    _passed: deque[tuple[float, float]] = field(default_factory=deque)
    _since: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until something may be sent."""
        if self.limit is None:
            return 0.0
        passed = max(0.0, now - self.filled)
        self.credit = min(self.credit + self.limit * passed, BURST_SECONDS * self.limit)
        self.filled = now
        return 0.0 if self.credit >= -1e-9 else -self.credit / self.limit

    def take(self, amount: float, now: float) -> None:
        """Something is sent."""
        self.credit -= amount if self.limit is not None else 0.0
        self._since = now if self._since is None else self._since

    def passed(self, amount: float, now: float) -> None:
        """Something was let through; the limit climbs with what it lets through, not while nothing is sent."""
        if self.limit is not None:
            seconds = amount / self.limit
            self._used += seconds
            self.limit *= 1 + CLIMB * seconds * (1 + (self._used / CALM_SECONDS) ** 2)
        self._passed.append((now, amount))
        while self._passed and now - self._passed[0][0] > MEASURED_SECONDS:
            self._passed.popleft()

    def measured(self, now: float) -> float:
        """Units per second that were let through lately."""
        since = now if self._since is None else self._since
        seconds = max(min(MEASURED_SECONDS, now - since), 0.1)
        return sum(a for t, a in self._passed if now - t <= seconds) / seconds

    def cut(self, now: float) -> None:
        """A limit was met; nothing is known of it while nothing has been let through."""
        found = self.measured(now)
        if found or self.limit is not None:
            new = BACK_OFF * found
            if self.limit is not None:  # not above the last, since what was let through may be a burst, nor far below
                new = min(max(new, self.limit / 2), BACK_OFF * self.limit)
            self.limit = max(new, 1 / LONGEST_PAUSE)
            self._used, self.credit, self.filled = 0.0, 0.0, now


@dataclass(frozen=True)
class Ticket:
    """A request in flight: when it was sent, and how many tokens it was thought to take."""

    sent: float
    tokens: float


@dataclass
class Pace:
    """One endpoint's.

    Attributes:
        connections: the most requests in flight.
        window: how many are allowed now.
    """

    connections: int
    window: float = FIRST_WINDOW
    in_flight: int = 0
    paused_until: float = 0.0
    rates: dict[Kind, Rate] = field(default_factory=lambda: {"requests": Rate(), "tokens": Rate()})
    failures: int = 0  # in a row
    dead_since: float | None = None
    limited_since: float | None = None
    _calm: bool = True  # nothing has gone wrong yet
    _cut: dict[str, float] = field(default_factory=dict)
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=40))

    def limits(self) -> dict[Kind, float]:
        """Those that were found, per second, to `resume` with."""
        return {kind: rate.limit for kind, rate in self.rates.items() if rate.limit is not None}

    def resume(self, limits: dict[Kind, float], age: float, now: float) -> None:
        """Begin with limits that were found `age` seconds ago, since when nothing was sent."""
        for kind, limit in limits.items():
            self.rates[kind] = Rate(limit, min(age, BURST_SECONDS) * limit, now)
        self.window = float(self.connections)

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; 0 if it may be now, infinite if one in flight must end first."""
        room = 1 if self.failures >= BREAK else min(int(self.window), self.connections)
        if self.in_flight >= room:
            return float("inf")
        return max(self.paused_until - now, 0.0, *(rate.wait(now) for rate in self.rates.values()))

    def start(self, tokens: float, now: float) -> Ticket:
        """A request is sent that will take about so many tokens."""
        self.in_flight += 1
        self.rates["requests"].take(1, now)
        self.rates["tokens"].take(tokens, now)
        return Ticket(now, tokens)

    def success(self, ticket: Ticket, tokens: float, now: float) -> None:
        """It was answered, and took so many tokens."""
        self.in_flight -= 1
        self.failures, self.dead_since, self.limited_since = 0, None, None
        self._recent.append(True)
        self.rates["requests"].passed(1, now)
        self.rates["tokens"].passed(tokens, now)
        self.rates["tokens"].take(tokens - ticket.tokens, now)
        self.window = min(self.window + (1 if self._calm else 1 / self.window), float(self.connections))

    def answered(self, ticket: Ticket) -> None:
        """The endpoint is alive and will not answer this request."""
        self.in_flight -= 1
        self.failures, self.dead_since, self.limited_since = 0, None, None

    def unsent(self, ticket: Ticket) -> None:
        """It was not sent after all, or nothing is known of it."""
        self.in_flight -= 1
        self.rates["requests"].take(-1, ticket.sent)
        self.rates["tokens"].take(-ticket.tokens, ticket.sent)

    def limited(self, ticket: Ticket, kind: Kind, retry_after: float | None, now: float) -> None:
        """It was sent back for a rate limit; nothing more is sent for `retry_after` seconds."""
        self.in_flight -= 1
        self.failures, self.dead_since = 0, None
        self.limited_since = ticket.sent if self.limited_since is None else self.limited_since
        fresh = ticket.sent > self._cut.get(kind, -1.0)
        if fresh:
            self.rates[kind].cut(now)
            self._cut[kind] = now
        if retry_after is not None:
            self.paused_until = max(self.paused_until, now + min(retry_after, 3600.0))
        elif fresh:
            self.paused_until = max(self.paused_until, now + 1.0)

    def trouble(self, ticket: Ticket, now: float) -> None:
        """It failed: no connection, no answer in time, or an error of the server."""
        self.in_flight -= 1
        self.failures += 1
        self._recent.append(False)
        self.dead_since = now if self.dead_since is None else self.dead_since
        if self._recent.count(False) > TROUBLE * len(self._recent) and ticket.sent > self._cut.get("window", -1.0):
            self._calm, self.window = False, max(1.0, 0.7 * self.window)
            self._cut["window"] = now
        if self.failures >= BREAK:
            self.paused_until = max(self.paused_until, now + min(2.0 ** ((self.failures - BREAK) // 2), LONGEST_PAUSE))

    def limited_for(self, now: float) -> float:
        """Seconds for which nothing but rate limits came back."""
        return now - self.limited_since if self.limited_since is not None else 0.0

    def dead_for(self, now: float) -> float:
        """Seconds for which the breaker has been open; 0 while it is closed."""
        return now - self.dead_since if self.failures >= BREAK and self.dead_since is not None else 0.0


def backoff(tries: int, draw: random.Random) -> float:
    """Seconds before another try: anything up to 0.5, 1, 2, 4, ... so that clients spread out."""
    return draw.uniform(0.0, min(0.5 * 2.0 ** (tries - 1), 30.0))
