"""What Prometheus reads: counts of requests, and what each engine does now."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from interlace.generation.engine import Engine

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Times:
    """Durations, counted by how long they are.

    Attributes:
        sum_seconds: of all.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._counts, self.sum_seconds = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.sum_seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return how many are at most as long as each bound."""
        total, found = 0, []
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Watched(Protocol):
    """A model that is served: its engine, and how long clients waited for the first and the last token."""

    engine: Engine
    first: Times
    whole: Times


class Metrics(Collector):
    """Counts of a server."""

    def __init__(self, served: Mapping[str, Watched]):
        """served: the models by name."""
        self._served = served
        self._requests: Counter[tuple[str, str]] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def count(self, path: str, status: int) -> None:
        """Count a request; path: one of the server's own, so that nobody can name many."""
        self._requests[path, str(status)] += 1

    def text(self) -> bytes:
        """Return all, in Prometheus' format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what stands now."""
        requests = CounterMetricFamily(
            "interlace_requests", "HTTP requests that were answered", labels=["path", "status"]
        )
        for labels, count in sorted(self._requests.items()):
            requests.add_metric(labels, count)
        yield requests
        first = HistogramMetricFamily(
            "interlace_time_to_first_token_seconds", "From a request to its first token", labels=["model"]
        )
        whole = HistogramMetricFamily("interlace_answer_seconds", "From a request to its end", labels=["model"])
        gauges = {name: GaugeMetricFamily(f"interlace_{name}", said, labels=["model"]) for name, said in GAUGES.items()}
        tokens = CounterMetricFamily(
            "interlace_tokens", "Tokens: read, made, reused, tried at once, foreseen so", labels=["model", "kind"]
        )
        for name, one in self._served.items():
            first.add_metric([name], one.first.buckets(), one.first.sum_seconds)
            whole.add_metric([name], one.whole.buckets(), one.whole.sum_seconds)
            for gauge, value in now(one.engine).items():
                gauges[gauge].add_metric([name], value)
            counts = one.engine.counts()
            for kind in ("read", "made", "reused", "tried", "foreseen"):
                tokens.add_metric([name, kind], getattr(counts, f"{kind}_tokens"))
        yield from (first, whole, tokens, *gauges.values())


GAUGES = {
    "waiting_requests": "Requests that no memory was given yet",
    "reading_requests": "Requests whose prompt is being read",
    "running_requests": "Requests whose answer is being made, which is the batch",
    "rows": "The most answers that are made at a time",
    "weights_bytes": "Bytes of weights",
    "sequence_bytes": "Bytes that admitted requests may come to",
    "snapshot_bytes": "Bytes of states that are kept for reuse",
    "snapshots": "States that are kept for reuse",
    "state_limit_bytes": "The most bytes of sequences and snapshots together",
}


def now(engine: Engine) -> dict[str, float]:
    """Return what an engine does now, by the names of GAUGES."""
    counts, budget = engine.counts(), engine.budget
    return {
        "waiting_requests": counts.waiting,
        "reading_requests": counts.reading,
        "running_requests": counts.live,
        "rows": budget.rows,
        "weights_bytes": budget.weights,
        "sequence_bytes": counts.sequence_bytes,
        "snapshot_bytes": counts.snapshot_bytes,
        "snapshots": counts.snapshots,
        "state_limit_bytes": budget.states,
    }
