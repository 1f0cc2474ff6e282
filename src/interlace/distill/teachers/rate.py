"""How fast to ask: the limits of an endpoint found by asking, and a breaker for one that is dead.

Requests in flight grow by one with every success until something goes wrong, then by one for each round. A rate limit,
of requests or of tokens, is not known until it is met: then the rate is set to a little less than what was let through,
and raised slowly (after additive increase and multiplicative decrease: Chiu and Jain, 1989), faster the more has been
let through since (as in CUBIC: Ha, Rhee, Xu, 2008).

A single 429 proves nothing: busy endpoints send some back whatever the rate. A limit is met when more are sent back
than usual (`Evidence`, a cumulative sum after Page, 1954). A cut that did not help is taken back, and what is sent back
is then taken for usual. Where the requests sent back had more company than those let through, the limit is of requests
in flight, and the window is cut in the place of the rate. Nothing here sleeps or looks at a clock; times are handed in.
"""

from __future__ import annotations

import bisect
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

FIRST_WINDOW = 8.0
BACK_OFF = 0.95  # of the rate that was let through
CLIMB = 0.01  # of the rate, added each second of sending; more the longer nothing was sent back
MOST_CLIMB = 0.001  # of the rate, added by one answer
CALM_SECONDS = 10.0  # of sending, after which the climb is twice as steep, and five times after twice as long
MEASURED_SECONDS, MEASURED = 10.0, 50  # over which what is let through is measured, and the fewest requests
FIRST_SECONDS = 0.3  # over which it is measured while no limit is known
BURST_SECONDS = 0.2  # of the rate, that may be sent at once after a pause
TROUBLE = 0.25  # share of failures from which on fewer requests are kept in flight
BREAK = 10  # failures in a row that open the breaker
LONGEST_PAUSE = 60.0
OWN_SECONDS = 5.0  # the longest that one request waits by itself, after it was sent back
IN_A_ROW = 5  # requests in a row, all sent back, that pause the line
HARD_SECONDS = 5.0  # a Retry-After from which on an answer on its way does not end the pause
LATELY = 64  # requests that are looked at, at least
COMPANY = 0.8  # share of pairs in which the one sent back had more beside it, from which on they are why

FIRST_SHARE, LEAST_SHARE, MOST_SHARE = 0.02, 0.01, 0.2  # of requests that are usually sent back
EXCESS = 0.02  # share sent back, beyond the usual one, that is borne
EPOCH_SECONDS, EPOCH_SENDS, EPOCHS = 1.0, 50, 12  # over which shares are taken, and how many of them count
QUANTILE = 0.3  # of the epochs' shares that is usual: under a real limit, epochs after a cut are clean
SURE = 20  # requests since a cut, from which on it is seen whether it helped

Kind = Literal["requests", "tokens"]


@dataclass
class Rate:
    """Units per second that one kind of limit lets through.

    Attributes:
        limit: per second; None until a limit was met.
        met: what was let through when the limit was last met.
        before: the limit before the last cut.
    """

    limit: float | None = None
    credit: float = 0.0
    filled: float = 0.0
    met: float | None = None
    before: float | None = None
    _used: float = 0.0  # seconds' worth that was let through since the last cut

    def wait(self, now: float) -> float:
        """Seconds until something may be sent."""
        if self.limit is None:
            return 0.0
        passed = max(0.0, now - self.filled)
        self.credit = min(self.credit + self.limit * passed, BURST_SECONDS * self.limit)
        self.filled = now
        return 0.0 if self.credit >= -1e-9 else -self.credit / self.limit

    def take(self, amount: float) -> None:
        """Count what is sent; a negative amount gives credit back."""
        self.credit -= amount if self.limit is not None else 0.0

    def passed(self, amount: float) -> None:
        """Raise the limit by what it lets through; it stays while nothing is sent."""
        if self.limit is not None:
            seconds = amount / self.limit
            self._used += seconds
            self.limit *= 1 + min(CLIMB * seconds * (1 + (self._used / CALM_SECONDS) ** 2), MOST_CLIMB)

    def cut(self, found: float, now: float) -> None:
        """A limit was met that lets `found` per second through."""
        self.before, new = self.limit, BACK_OFF * found
        if self.limit is not None:  # not above the last, since what was let through may be a burst, nor far below
            new = min(max(new, self.limit / 2), BACK_OFF * self.limit)
        self.limit = max(new, 1 / LONGEST_PAUSE)
        self.met = self.limit / BACK_OFF
        self._used, self.credit, self.filled = 0.0, 0.0, now

    def restore(self) -> None:
        """Take the last cut back: it did not help."""
        self.limit = self.before
        self.met = None if self.before is None else max(self.met or 0.0, self.before)


@dataclass
class Ticket:
    """A request in flight.

    Attributes:
        sent: when it was.
        tokens: how many it was thought to take.
        beside: requests in flight, itself included, when it was sent.
        back: whether it was sent back for a rate limit, to wait `told` seconds.
    """

    sent: float
    tokens: float
    beside: int = 1
    back: bool = False
    told: float = 0.0


@dataclass
class Evidence:
    """How many more requests than usual were sent back for one kind of limit.

    Attributes:
        level: requests sent back beyond the usual share and EXCESS, summed, never below 0.
        usual: share of requests that is sent back whatever the rate.
        since: when the last cut was.
        judged: whether that cut was seen not to help.
        sends, back: requests since then, and those of them that were sent back.
    """

    level: float = 0.0
    usual: float = FIRST_SHARE
    since: float = -1.0
    judged: bool = False
    sends: int = 0
    back: int = 0
    _epoch: tuple[float, int, int] = (0.0, 0, 0)  # begun, sends, sent back
    _shares: deque[float] = field(default_factory=lambda: deque(maxlen=EPOCHS))

    @property
    def share(self) -> float:
        """The share that was sent back since the last cut."""
        return self.back / max(1, self.sends)

    def sent(self, now: float) -> None:
        """Count a request: it lowers the level, so that slow answers do not raise it."""
        self.level = max(0.0, self.level - 1.5 * self.usual - EXCESS)
        begun, sends, back = self._epoch
        if sends >= EPOCH_SENDS and now - begun >= EPOCH_SECONDS:
            self._shares.append(back / sends)
            if len(self._shares) >= 3:
                low = sorted(self._shares)[int(QUANTILE * len(self._shares))]
                self.usual = min(max(low, LEAST_SHARE), MOST_SHARE)
            begun, sends, back = now, 0, 0
        self.sends += 1
        self._epoch = (begun, sends + 1, back)

    def refused(self, ticket: Ticket) -> bool:
        """Count a request that was sent back; whether there are now so many that a limit was met."""
        if ticket.sent <= self.since:
            return False
        self.back += 1
        begun, sends, back = self._epoch
        self._epoch = (begun, sends, back + (ticket.sent >= begun))
        self.level += 1
        return self.level >= min(max(3.0, 2.0 + 100 * self.usual), 8.0)

    def reset(self, now: float) -> None:
        """Begin anew after a cut."""
        self.since, self.level, self.judged, self.sends, self.back = now, 0.0, False, 0, 0
        self._epoch = (now, 0, 0)

    def take_for_usual(self) -> None:
        """What is sent back has nothing to do with our rate."""
        self.judged, self.level, self.usual = True, 0.0, min(self.share, MOST_SHARE)
        self._shares = deque([self.usual] * 4, maxlen=EPOCHS)


def _by_kind() -> dict[Kind, Evidence]:
    return {"requests": Evidence(), "tokens": Evidence()}


@dataclass
class RateControl:
    """The pace of one endpoint.

    Attributes:
        connections: the most requests in flight.
        window: how many are allowed now.
        rates, evidence: by kind of limit.
        failures: in a row.
    """

    connections: int
    window: float = FIRST_WINDOW
    in_flight: int = 0
    paused_until: float = 0.0
    rates: dict[Kind, Rate] = field(default_factory=lambda: {"requests": Rate(), "tokens": Rate()})
    evidence: dict[Kind, Evidence] = field(default_factory=_by_kind)
    failures: int = 0
    dead_since: float | None = None
    limited_since: float | None = None
    _hard: bool = True  # whether an answer does not end the pause
    _calm: bool = True  # nothing has gone wrong yet
    _rounds: float = 0.0  # since a limit of requests in flight was met; 0 for never
    _shrunk: float = -1.0  # when the window was for failures
    _answered: bool = False
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=40))
    _lately: deque[Ticket] = field(default_factory=deque)

    def limits(self) -> dict[Kind, float]:
        """Those that were found, per second, to `resume` with."""
        return {kind: rate.limit for kind, rate in self.rates.items() if rate.limit is not None}

    def resume(self, limits: dict[Kind, float], age: float, now: float) -> None:
        """Begin with limits that were found `age` seconds ago, since when nothing was sent."""
        for kind, limit in limits.items():
            self.rates[kind] = Rate(limit, min(age, BURST_SECONDS) * limit, now, met=limit)
        self.window = float(self.connections)

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; 0 if it may be now, infinite if one in flight must end first."""
        room = 1 if self.failures >= BREAK else min(int(self.window), self.connections)
        if self.in_flight >= room:
            return float("inf")
        return max(self.paused_until - now, 0.0, *(rate.wait(now) for rate in self.rates.values()))

    def start(self, tokens: float, now: float) -> Ticket:
        """Count a request that is sent and will take about so many tokens."""
        self.in_flight += 1
        ticket = Ticket(now, tokens, self.in_flight)
        self.rates["requests"].take(1)
        self.rates["tokens"].take(tokens)
        for evidence in self.evidence.values():
            evidence.sent(now)
        self._lately.append(ticket)
        while now - self._lately[0].sent > MEASURED_SECONDS and len(self._lately) > LATELY:
            self._lately.popleft()
        return ticket

    def success(self, ticket: Ticket, tokens: float, now: float) -> None:
        """Count an answer, and the tokens it took."""
        self.answered(ticket)
        self._recent.append(True)
        self._answered = True
        self.rates["requests"].passed(1)
        self.rates["tokens"].passed(tokens)
        self.rates["tokens"].take(tokens - ticket.tokens)
        if not self._hard:
            self.paused_until = min(self.paused_until, now)
        if self._rounds:
            self._rounds += 1 / self.window
            more = min(1.0, (1 / 8 + (self._rounds / 8) ** 2) / self.window)
        else:
            more = 1 if self._calm else 1 / self.window
        self.window = min(self.window + more, float(self.connections))

    def answered(self, ticket: Ticket) -> None:
        """Count a request that the endpoint is alive for and does not answer."""
        self.in_flight -= 1
        self.failures, self.dead_since, self.limited_since = 0, None, None

    def unsent(self, ticket: Ticket) -> None:
        """Forget a request that was not sent after all, or of which nothing is known."""
        self.in_flight -= 1
        self._give_back(ticket)

    def _give_back(self, ticket: Ticket) -> None:
        self.rates["requests"].take(-1)
        self.rates["tokens"].take(-ticket.tokens)

    def limited(self, ticket: Ticket, kind: Kind, retry_after: float | None, now: float) -> float:
        """Count a request that was sent back for a rate limit; the seconds that this request should wait.

        The line is slowed, or paused, only where the limit is the rate's.
        """
        self.in_flight -= 1
        self._give_back(ticket)
        self.failures, self.dead_since = 0, None
        self.limited_since = ticket.sent if self.limited_since is None else self.limited_since
        ticket.back, ticket.told = True, 1.0 if retry_after is None else retry_after
        if (least := self._nothing_passes(ticket)) is not None:
            self._hard = least >= HARD_SECONDS or not self.in_flight
            self.paused_until = max(self.paused_until, now + min(least, 3600.0))
        elif self._rounds and self.in_flight and self.paused_until <= now:
            self._hard, self.paused_until = False, now + min(ticket.told, 1.0)
        if self.evidence[kind].refused(ticket):
            self._slow_down(kind, now)
        return min(ticket.told, OWN_SECONDS)

    def _slow_down(self, kind: Kind, now: float) -> None:
        """A limit was met, or a cut before did not help."""
        rate, evidence = self.rates[kind], self.evidence[kind]
        below = rate.met is not None and rate.limit is not None and rate.limit <= 0.99 * rate.met
        if below and evidence.sends >= SURE and not evidence.judged and evidence.share <= MOST_SHARE:
            evidence.take_for_usual()
            rate.restore()
            return
        if (room := self._room()) is not None:
            self.window, self._rounds = float(room), 1e-3
            rate.limit = rate.met = None
        elif self._answered and (found := self._let_through(kind, now)):
            rate.cut(found, now)
        evidence.reset(now)

    def _let_through(self, kind: Kind, now: float) -> float:
        """Units per second of what was sent lately and not sent back."""
        first, least = self._lately[0].sent, self._lately[-min(MEASURED, len(self._lately))].sent
        if self.rates[kind].limit is None:
            since = now - FIRST_SECONDS
        else:
            since = max(self.evidence[kind].since, now - MEASURED_SECONDS)
        since = max(min(since, least, now - FIRST_SECONDS), first)
        through = (t for t in self._lately if t.sent >= since and not t.back)
        return sum(1 if kind == "requests" else t.tokens for t in through) / max(now - since, 0.1)

    def _nothing_passes(self, ticket: Ticket) -> float | None:
        """The least Retry-After of this request and those sent before it, if all were sent back; else None."""
        told: list[float] = []
        for t in reversed(self._lately):
            if t.sent > ticket.sent or (t is not ticket and not told):
                continue
            if not t.back:
                return None
            told.append(t.told)
            if len(told) == IN_A_ROW:
                break
        return min(told, default=None)

    def _room(self) -> int | None:
        """Requests in flight beyond which others are sent back; None where company makes no difference."""
        some = list(self._lately)[-LATELY:]
        first = next((i for i, t in enumerate(some) if t.back), len(some))
        back = [t.beside for t in some[first:] if t.back]
        through = sorted(t.beside for t in some[first:] if not t.back)
        if len(through) < 5 or len(back) < 3:
            return None
        wins = sum(bisect.bisect_left(through, b) + bisect.bisect_right(through, b) for b in back) / 2
        return max(1, through[-1]) if wins / (len(back) * len(through)) > COMPANY else None

    def trouble(self, ticket: Ticket, now: float) -> None:
        """Count a failure: no connection, no answer in time, or an error of the server."""
        self.in_flight -= 1
        self.failures += 1
        self._recent.append(False)
        self.dead_since = now if self.dead_since is None else self.dead_since
        if self._recent.count(False) > TROUBLE * len(self._recent) and ticket.sent > self._shrunk:
            self._calm, self.window, self._shrunk = False, max(1.0, 0.7 * self.window), now
        if self.failures >= BREAK:
            self._hard = True
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
