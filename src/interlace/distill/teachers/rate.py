"""Control how fast an endpoint is asked: find its rate limit by asking, and open a circuit breaker when it is dead.

The limit of requests in flight grows by one with every success until something goes wrong, then by one for each round.

A rate limit, of requests or of tokens, is not known until it is met. Then the rate is set a little below what was let
through. It is raised slowly from there (additive increase and multiplicative decrease: Chiu and Jain, 1989), and faster
the more has been let through since (as in CUBIC: Ha, Rhee, Xu, 2008).

A single 429 proves nothing, because busy endpoints reject some requests at any rate. A limit is met when more are
rejected than usual (`Evidence`, a cumulative sum after Page, 1954). If a cut did not help, it is taken back, and that
share of rejections is taken for usual from then on.

If rejected requests had more others in flight beside them than accepted ones, the limit is one of requests in flight.
Then the limit of requests in flight is cut instead of the rate.

Nothing here sleeps or reads a clock; callers pass the time in.
"""

from __future__ import annotations

import bisect
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

FIRST_WINDOW = 8.0
# With these two, one request in a hundred gets a 429, and 95 % of the limit is used (docs/LOG.md).
BACK_OFF = 0.95  # share of what was let through, to which the rate is set
CLIMB = 0.01  # share of the rate, added each second of sending; more the longer nothing was rejected
MOST_CLIMB = 0.001  # share of the rate, added by one answer, at most
# Steeper, because from a rate that was cut far too low, steps of one size never recovered.
CALM_SECONDS = 10.0  # of sending, after which the climb is twice as steep, and five times after twice as long
MEASURED_SECONDS, MEASURED = 10.0, 50  # time over which throughput is measured, and the fewest requests
FIRST_SECONDS = 0.3  # time over which it is measured while no limit is known
BURST_SECONDS = 0.2  # seconds' worth of the rate that may be sent at once after a pause
TROUBLE = 0.25  # share of failures above which fewer requests are kept in flight
BREAK = 10  # failures in a row that open the breaker
LONGEST_PAUSE = 60.0
OWN_SECONDS = 5.0  # the longest that one rejected request waits alone, while others are sent
IN_A_ROW = 5  # rejections in a row that pause all requests
HARD_SECONDS = 5.0  # from this Retry-After on, an answer to a request in flight does not end the pause
LATELY = 64  # the last requests that are examined, at least so many
COMPANY = 0.8  # share of pairs (rejected, accepted), more beside the rejected: above it, they are why

FIRST_SHARE, LEAST_SHARE, MOST_SHARE = 0.02, 0.01, 0.2  # bounds of the usual share of rejections
EXCESS = 0.02  # share of rejections beyond the usual one that is tolerated
EPOCH_SECONDS, EPOCH_SENDS, EPOCHS = 1.0, 50, 12  # an epoch's least length and requests; epochs that count
QUANTILE = 0.3  # of the epochs' shares, taken for usual: under a real limit, epochs after a cut are clean
SURE = 20  # requests after a cut, before it is judged whether it helped

Kind = Literal["requests", "tokens"]


@dataclass
class Rate:
    """The rate in units per second that one kind of limit lets through, as a token bucket.

    Attributes:
        limit: units per second; None until a limit was met.
        credit: units that may be sent now; negative after more was sent.
        filled: when `credit` was last filled.
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
        """Return the seconds until something may be sent."""
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
        """Raise the limit for an amount that was let through; the limit stays while nothing is sent."""
        if self.limit is not None:
            seconds = amount / self.limit
            self._used += seconds
            self.limit *= 1 + min(CLIMB * seconds * (1 + (self._used / CALM_SECONDS) ** 2), MOST_CLIMB)

    def cut(self, found: float, now: float) -> None:
        """Set the limit a little below `found`, the units per second that were let through."""
        self.before, new = self.limit, BACK_OFF * found
        # Never above the last limit: `found` may be a burst just after a pause, and 0.95 of it once raised the rate.
        # Never below half of the last either.
        if self.limit is not None:
            new = min(max(new, self.limit / 2), BACK_OFF * self.limit)
        self.limit = max(new, 1 / LONGEST_PAUSE)
        self.met = self.limit / BACK_OFF
        self._used, self.credit, self.filled = 0.0, 0.0, now

    def restore(self) -> None:
        """Take the last cut back, because it did not help."""
        self.limit = self.before
        self.met = None if self.before is None else max(self.met or 0.0, self.before)


@dataclass
class Ticket:
    """A request in flight.

    Attributes:
        sent: when it was sent.
        tokens: about how many tokens it was expected to take.
        beside: requests in flight when it was sent, including itself.
        back: whether it was rejected for a rate limit, and told to wait `told` seconds.
    """

    sent: float
    tokens: float
    beside: int = 1
    back: bool = False
    told: float = 0.0


@dataclass
class Evidence:
    """Counts whether more requests than usual are rejected for one kind of limit.

    Attributes:
        level: rejections beyond the usual share and EXCESS, summed, never below 0.
        usual: share of requests that is rejected at any rate.
        since: when the last cut was.
        judged: whether that cut was seen not to help.
        sends, back: requests since then, and those of them that were rejected.
    """

    level: float = 0.0
    usual: float = FIRST_SHARE
    since: float = -1.0
    judged: bool = False
    sends: int = 0
    back: int = 0
    _epoch: tuple[float, int, int] = (0.0, 0, 0)  # when it began, sends, rejections
    _shares: deque[float] = field(default_factory=lambda: deque(maxlen=EPOCHS))

    @property
    def share(self) -> float:
        """Share of requests that were rejected since the last cut."""
        return self.back / max(1, self.sends)

    def sent(self, now: float) -> None:
        """Count a request when it is sent.

        It lowers the level when it is sent, not when it is answered: slow answers must not raise the level.
        """
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
        """Count a rejection; return whether there are now so many that a limit was met."""
        if ticket.sent <= self.since:
            return False
        self.back += 1
        begun, sends, back = self._epoch
        self._epoch = (begun, sends, back + (ticket.sent >= begun))
        self.level += 1
        return self.level >= min(max(3.0, 2.0 + 100 * self.usual), 8.0)

    def reset(self, now: float) -> None:
        """Begin to count anew after a cut."""
        self.since, self.level, self.judged, self.sends, self.back = now, 0.0, False, 0, 0
        self._epoch = (now, 0, 0)

    def take_for_usual(self) -> None:
        """Take the present share of rejections for usual: it has nothing to do with our rate."""
        self.judged, self.level, self.usual = True, 0.0, min(self.share, MOST_SHARE)
        self._shares = deque([self.usual] * 4, maxlen=EPOCHS)


def _by_kind() -> dict[Kind, Evidence]:
    return {"requests": Evidence(), "tokens": Evidence()}


@dataclass
class RateControl:
    """The rate limits, and the limit of requests in flight, of one endpoint.

    Attributes:
        connections: the most requests in flight that the recipe allows.
        window: how many requests in flight are allowed now.
        in_flight: requests in flight now.
        paused_until: no request is sent before this time.
        rates, evidence: by kind of limit.
        failures: failures in a row.
        dead_since: when the first of these failures was; None if there are none.
        limited_since: when the first request of a time with only rate limits was sent; None in other times.
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
    _hard: bool = True  # if True, an answer does not end the pause
    _calm: bool = True  # nothing has gone wrong yet
    _rounds: float = 0.0  # since a limit of requests in flight was met; 0 for never
    _shrunk: float = -1.0  # when fewer requests in flight were last allowed for failures
    _answered: bool = False
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=40))
    _lately: deque[Ticket] = field(default_factory=deque)

    def limits(self) -> dict[Kind, float]:
        """Return the rate limits that were found, per second, for `resume`."""
        return {kind: rate.limit for kind, rate in self.rates.items() if rate.limit is not None}

    def resume(self, limits: dict[Kind, float], age: float, now: float) -> None:
        """Begin with limits that were found `age` seconds ago, since when nothing was sent."""
        for kind, limit in limits.items():
            self.rates[kind] = Rate(limit, min(age, BURST_SECONDS) * limit, now, met=limit)
        self.window = float(self.connections)

    def wait(self, now: float) -> float:
        """Return the seconds until the next request may be sent: 0 if now, infinite if one in flight must end first."""
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
        """Count a reply of any kind: the endpoint is alive, even if it gave no answer."""
        self.in_flight -= 1
        self.failures, self.dead_since, self.limited_since = 0, None, None

    def unsent(self, ticket: Ticket) -> None:
        """Forget a request that was not sent, or whose result is not known."""
        self.in_flight -= 1
        self._give_back(ticket)

    def _give_back(self, ticket: Ticket) -> None:
        self.rates["requests"].take(-1)
        self.rates["tokens"].take(-ticket.tokens)

    def limited(self, ticket: Ticket, kind: Kind, retry_after: float | None, now: float) -> float:
        """Count a request that was rejected for a rate limit; return the seconds that it should wait before its retry.

        Other requests are slowed or paused only if the endpoint's rate is the reason.
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
        """Cut the rate or the requests in flight, because a limit was met; or take a cut back that did not help."""
        rate, evidence = self.rates[kind], self.evidence[kind]
        below = rate.met is not None and rate.limit is not None and rate.limit <= 0.99 * rate.met
        if below and evidence.sends >= SURE and not evidence.judged and evidence.share <= MOST_SHARE:
            evidence.take_for_usual()
            rate.restore()
            return
        # A limit of the rate must not cut the requests in flight: with answers of two seconds they grew back by one in
        # two seconds, and 38 of 50 requests a second were used.
        if (room := self._room()) is not None:
            self.window, self._rounds = float(room), 1e-3
            rate.limit = rate.met = None
        # Nothing is cut before an answer: a first rejection once set the rate to one request a second.
        elif self._answered and (found := self._let_through(kind, now)):
            rate.cut(found, now)
        evidence.reset(now)

    def _let_through(self, kind: Kind, now: float) -> float:
        """Return the units per second of what was sent lately and not rejected."""
        first, least = self._lately[0].sent, self._lately[-min(MEASURED, len(self._lately))].sent
        if self.rates[kind].limit is None:
            since = now - FIRST_SECONDS
        else:
            since = max(self.evidence[kind].since, now - MEASURED_SECONDS)
        since = max(min(since, least, now - FIRST_SECONDS), first)
        through = (t for t in self._lately if t.sent >= since and not t.back)
        return sum(1 if kind == "requests" else t.tokens for t in through) / max(now - since, 0.1)

    def _nothing_passes(self, ticket: Ticket) -> float | None:
        """Return the smallest Retry-After of this request and those sent before it if all were rejected, else None."""
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
        """Return the requests in flight beyond which others are rejected; None if their number makes no difference."""
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
        """Return the seconds for which nothing but rate limits came back."""
        return now - self.limited_since if self.limited_since is not None else 0.0

    def dead_for(self, now: float) -> float:
        """Return the seconds for which the breaker has been open; 0 while it is closed."""
        return now - self.dead_since if self.failures >= BREAK and self.dead_since is not None else 0.0


def backoff(tries: int, draw: random.Random) -> float:
    """Return the seconds to wait before a retry: random, up to 0.5, 1, 2, 4, ..., which spreads clients out."""
    return draw.uniform(0.0, min(0.5 * 2.0 ** (tries - 1), 30.0))
