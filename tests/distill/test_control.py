"""The pace against a simulated endpoint, in virtual time: nothing sleeps."""

from __future__ import annotations

import heapq
import random

import pytest

from interlace.distill.teachers.rate import BREAK, RateControl, backoff


class Endpoint:
    """Lets through so many units per second, with a burst, and answers after a while."""

    def __init__(self, requests=None, tokens=None, burst=1.0, latency=0.2, retry=True):
        self.limits, self.burst, self.latency, self.retry = (
            {"requests": requests, "tokens": tokens},
            burst,
            latency,
            retry,
        )
        self.level, self.at = dict.fromkeys(self.limits, 0.0), 0.0

    def admit(self, now, tokens):
        for kind, limit in self.limits.items():
            if limit:
                self.level[kind] = min(limit * self.burst, self.level[kind] + limit * (now - self.at))
        self.at = now
        amounts = {"requests": 1, "tokens": tokens}
        for kind, limit in self.limits.items():
            if limit and self.level[kind] < amounts[kind]:
                return kind, (amounts[kind] - self.level[kind]) / limit
        for kind, limit in self.limits.items():
            if limit:
                self.level[kind] -= amounts[kind]
        return None, 0.0


def drive(endpoint, seconds, pace=None, tokens=lambda draw: draw.uniform(50, 150)):
    """(answers per second, tokens per second, share sent back) over the last three quarters of the time."""
    pace, draw, now, flying, number = pace or RateControl(64), random.Random(0), 0.0, [], 0
    done, back = [], 0
    while now < seconds:
        wait = pace.wait(now)
        while flying and (flying[0][0] <= now + wait or wait == float("inf")):
            at, _, ticket, used, limited, retry = heapq.heappop(flying)
            now = max(now, at)
            if limited:
                pace.limited(ticket, limited, retry, now)
                back += 1
            else:
                pace.success(ticket, used, now)
                done.append((now, used))
            wait = pace.wait(now)
        if wait == float("inf"):
            raise AssertionError("nothing is in flight, and nothing may be sent")
        now += max(wait, 1e-6)
        if wait:
            continue
        used = tokens(draw)
        ticket = pace.start(100, now)
        kind, after = endpoint.admit(now, used)
        number += 1
        answered = now + (0.01 if kind else endpoint.latency * draw.uniform(0.5, 1.5))
        heapq.heappush(
            flying, (answered, number, ticket, used, kind, float(int(after) + 1) if endpoint.retry else None)
        )
    begin = seconds / 4
    late = [(t, u) for t, u in done if t >= begin]
    span = seconds - begin
    return len(late) / span, sum(u for _, u in late) / span, back / max(1, number)


@pytest.mark.parametrize(
    ("endpoint", "connections"),
    [
        (Endpoint(requests=20), 64),
        (Endpoint(requests=200, latency=0.1), 64),
        (Endpoint(requests=50, burst=10), 64),
        (Endpoint(requests=50, retry=False), 64),
        (Endpoint(requests=50, latency=2.0), 256),
    ],
)
def test_a_limit_of_requests_is_found_and_nearly_used_up(endpoint, connections):
    rate, _, back = drive(endpoint, 240, RateControl(connections))
    assert 0.92 * endpoint.limits["requests"] < rate <= 1.01 * endpoint.limits["requests"]
    assert back < 0.1


@pytest.mark.parametrize("tokens", [2000, 20_000])
def test_a_limit_of_tokens_is_found_and_nearly_used_up(tokens):
    endpoint = Endpoint(requests=1000, tokens=tokens, latency=0.1)
    pace = RateControl(64)
    _, rate, _ = drive(endpoint, 240, pace)
    assert 0.92 * tokens < rate <= 1.01 * tokens
    assert pace.rates["requests"].limit is None


@pytest.mark.parametrize("wrong", [1.0, 0.5, 2.0])
def test_limits_that_are_known_are_kept_from_the_first_request_and_mended_where_they_are_wrong(wrong):
    pace = RateControl(64)
    pace.resume({"requests": wrong * 100.0}, age=3.0, now=0.0)
    assert pace.wait(0.0) == 0
    rate, _, back = drive(Endpoint(requests=100, latency=0.1), 120, pace)
    assert 92 < rate <= 101
    assert back < 0.05


def test_a_limit_does_not_climb_while_nothing_is_sent():
    pace = RateControl(64)
    pace.resume({"requests": 10.0}, age=0.0, now=0.0)
    for second in range(0, 120, 5):
        pace.wait(float(second))
    assert pace.limits() == {"requests": 10.0}


def test_without_limits_the_connections_are_filled():
    rate, _, back = drive(Endpoint(latency=0.5), 60)
    assert rate > 0.9 * 64 / 0.5
    assert back == 0


def test_nothing_is_sent_before_retry_after():
    pace = RateControl(8)
    pace.limited(pace.start(1, 0.0), "requests", 30.0, 1.0)
    assert pace.wait(1.0) == pytest.approx(30.0)
    assert pace.wait(30.9) == pytest.approx(0.1)


def test_one_burst_of_refusals_is_one_cut():
    pace = RateControl(64)
    for t in range(50):
        pace.success(pace.start(10, t / 10), 10, t / 10 + 0.05)
    flying = [pace.start(10, 5.0) for _ in range(8)]
    pace.limited(flying[0], "requests", 1.0, 5.1)
    assert pace.rates["requests"].limit is None  # one proves nothing
    limits = []
    for ticket in flying[1:]:
        pace.limited(ticket, "requests", 1.0, 5.2)
        limits.append(pace.rates["requests"].limit)
    found = [x for x in limits if x is not None]
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(0.95 * 50 / 5.1, rel=0.1)
    assert pace.in_flight == 0


def test_a_dead_endpoint_opens_the_breaker_and_one_answer_closes_it():
    pace, now = RateControl(64), 0.0
    for _ in range(BREAK):
        pace.trouble(pace.start(1, now), now + 0.1)
        now += 0.1
    assert pace.dead_for(now) > 0
    assert pace.wait(now) == pytest.approx(1.0, abs=0.01)
    probe = pace.start(1, now + 1)
    assert pace.wait(now + 2) == float("inf")  # one at a time
    pace.trouble(probe, now + 2)
    pauses = []
    for _ in range(20):
        now = pace.paused_until
        pace.trouble(pace.start(1, now), now)
        pauses.append(pace.paused_until - now)
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60.0
    pace.success(pace.start(1, now), 1, now)
    assert pace.dead_for(now) == 0


def test_a_few_failures_do_not_close_the_window_and_many_do():
    pace, draw = RateControl(64), random.Random(0)
    for i in range(400):
        ticket = pace.start(1, float(i))
        (pace.trouble if draw.random() < 0.05 else lambda t, n: pace.success(t, 1, n))(ticket, i + 0.5)
    assert pace.window > 30
    for i in range(400, 460):
        ticket = pace.start(1, float(i))
        (pace.trouble if i % 2 else lambda t, n: pace.success(t, 1, n))(ticket, i + 0.5)
    assert pace.window < 4


def test_backoff_grows_and_spreads():
    draw = random.Random(0)
    assert all(0 <= backoff(1, draw) <= 0.5 for _ in range(100))
    late = [backoff(9, draw) for _ in range(200)]
    assert max(late) > 20
    assert min(late) < 5
    assert max(late) <= 30
