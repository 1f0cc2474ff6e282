"""The pace against limits of several kinds, and 429s that no rate of ours has caused, in virtual time."""

from __future__ import annotations

import heapq
import random

import pytest

from interlace.distill.teachers.rate import RateControl

LANES = 256  # rows at once


class Endpoint:
    """Token buckets, a limit of requests in flight, and 429s at random; what is let through takes `latency`."""

    def __init__(self, requests=None, tokens=None, at_once=None, spurious=0.0, told=1.0, latency=0.15, change=None):
        self.limits, self.at_once, self.spurious, self.told = (
            {"requests": requests, "tokens": tokens},
            at_once,
            spurious,
            told,
        )
        self.latency, self.change = latency, change  # (when, {name: value})
        self.level = {kind: limit or 0.0 for kind, limit in self.limits.items()}  # a burst of one second
        self.at, self.open, self.met = 0.0, 0, 0

    def admit(self, now, tokens, draw):
        """(kind of the 429 or None, its Retry-After)."""
        if self.change and now >= self.change[0]:
            for name, value in self.change[1].items():
                if name in self.limits:
                    self.limits[name] = value
                else:
                    setattr(self, name, value)
            self.change = None
        for kind, limit in self.limits.items():
            if limit:
                self.level[kind] = min(limit, self.level[kind] + limit * (now - self.at))
        self.at = now
        if draw.random() < self.spurious:
            return "requests", self.told
        amounts = {"requests": 1, "tokens": tokens}
        short = [k for k, limit in self.limits.items() if limit and self.level[k] < amounts[k]]
        if short or (self.at_once and self.open >= self.at_once):
            self.met += 1
            return (short or ["requests"])[0], 1.0
        for kind in amounts:
            self.level[kind] -= amounts[kind]
        self.open += 1
        return None, 0.0


def drive(endpoint, seconds, pace=None, tokens=(30, 40), seed=0):
    """(answers a second, tokens a second, share sent back by a limit, [when each was answered])."""
    pace, draw, now, events, number = pace or RateControl(128), random.Random(seed), 0.0, [], 0
    done, waiting, sent, used_in_all = [], 0, 0, 0.0
    while now < seconds:
        free = waiting + pace.in_flight < LANES
        wait = pace.wait(now) if free else float("inf")
        if wait > 0 and events and events[0][0] <= now + wait:
            at, _, ticket, kind, used, told = heapq.heappop(events)
            now = max(now, at)
            if ticket is None:
                waiting -= 1
            elif kind:
                own = pace.limited(ticket, kind, told, now)  # seconds that this request waits by itself
                waiting += 1
                number += 1
                heapq.heappush(events, (now + (own or 0.0), number, None, None, 0, None))
            else:
                endpoint.open -= 1
                used_in_all += used
                done.append((now, used))
                pace.success(ticket, used, now)
            continue
        if wait > 0:
            assert wait < float("inf"), "nothing is in flight, and nothing may be sent"
            now += max(wait, 1e-6)
            continue
        used = draw.uniform(*tokens)
        ticket = pace.start(used_in_all / len(done) if done else 64.0, now)
        kind, told = endpoint.admit(now, used, draw)
        number += 1
        sent += 1
        answered = now + (0.01 if kind else endpoint.latency * draw.uniform(0.5, 1.5))
        heapq.heappush(events, (answered, number, ticket, kind, used, told))
    return len(done) / seconds, sum(u for _, u in done) / seconds, endpoint.met / sent, [t for t, _ in done]


@pytest.mark.parametrize(("spurious", "share"), [(0.0, 0.95), (0.01, 0.9), (0.03, 0.8), (0.1, 0.8)])
@pytest.mark.parametrize("told", [None, 1.0, 30.0])
def test_a_limit_of_requests_is_used_up_whatever_is_sent_back_at_random(spurious, share, told):
    rate, _, met, _ = drive(Endpoint(requests=250, tokens=9000, spurious=spurious, told=told), 60)
    assert rate >= share * 250
    assert met < 0.06


@pytest.mark.parametrize(("spurious", "share"), [(0.0, 0.95), (0.01, 0.9), (0.03, 0.8)])
def test_a_limit_of_tokens_is_used_up_too(spurious, share):
    _, rate, met, _ = drive(Endpoint(requests=250, tokens=9000, spurious=spurious), 60, tokens=(30, 70))
    assert rate >= share * 9000
    assert met < 0.06


@pytest.mark.parametrize("spurious", [0.01, 0.03, 0.1])
def test_without_a_limit_the_connections_are_used(spurious):
    rate, _, _, _ = drive(Endpoint(spurious=spurious), 30)
    assert rate > 0.75 * 128 / 0.15


@pytest.mark.parametrize(("before", "after", "least"), [(250, 100, 0.95), (250, 25, 0.95), (100, 250, 0.6)])
@pytest.mark.parametrize("spurious", [0.0, 0.03])
def test_a_limit_that_changes_is_found_again(before, after, least, spurious):
    endpoint = Endpoint(requests=before, spurious=spurious, change=(30.0, {"requests": after}))
    _, _, met, times = drive(endpoint, 60)
    late = sum(t > 31 for t in times) / 29
    assert least * after < late < 1.1 * after
    assert met < 0.1


@pytest.mark.parametrize("change", [{"spurious": 0.03}, {"spurious": 0.0}])
def test_429s_at_random_may_begin_and_end(change):
    endpoint = Endpoint(requests=250, spurious=0.03 - change["spurious"], change=(30.0, change))
    rate, _, met, _ = drive(endpoint, 60)
    assert rate > 0.9 * 250
    assert met < 0.06


@pytest.mark.parametrize(("at_once", "latency", "least"), [(4, 0.15, 0.8), (32, 0.15, 0.75), (32, 5.0, 0.85)])
def test_a_limit_of_requests_in_flight_is_found(at_once, latency, least):
    seconds = 60 if latency < 1 else 600
    rate, _, _, _ = drive(Endpoint(at_once=at_once, latency=latency), seconds)
    assert rate > least * at_once / latency


def test_one_429_among_answers_holds_up_itself_alone():
    pace = RateControl(64)
    for i in range(40):
        pace.success(pace.start(10, i / 20), 10, i / 20 + 0.01)
    ticket, beside = pace.start(10, 3.0), pace.start(10, 3.0)
    own = pace.limited(ticket, "requests", 30.0, 3.01)
    assert own >= 1.0
    assert pace.wait(3.01) == 0
    assert pace.limits() == {}
    pace.success(beside, 10, 3.1)


def test_where_nothing_passes_the_line_waits_as_it_was_told():
    pace = RateControl(64)
    for i in range(40):
        pace.success(pace.start(10, i / 20), 10, i / 20 + 0.01)
    for i in range(8):
        if pace.wait(3.0 + i / 20) > 0:
            break
        pace.limited(pace.start(10, 3.0 + i / 20), "requests", 30.0, 3.01 + i / 20)
    assert i < 7
    assert pace.wait(3.4) > 29


def test_a_short_retry_after_among_long_ones_counts():
    pace = RateControl(64)
    tickets = [pace.start(10, 0.0) for _ in range(8)]
    for i, ticket in enumerate(tickets):
        pace.limited(ticket, "requests", 2.0 if i == 3 else 30.0, 0.01)
    assert 1.9 < pace.wait(0.02) <= 30.0
