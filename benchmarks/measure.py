"""Ours and theirs, alternately, so that a noisy machine disturbs both."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from interlace.model.precision import matmul_flops_per_second
from interlace.ops.core import kernels as native
from interlace.ops.selftest import check


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(work: Callable[[], object], times: int = 7) -> float:
    """The median of `times` calls, after one to warm up."""
    work()
    return statistics.median(seconds(work) for _ in range(times))


def per_call(work: Callable[[], object], calls: int) -> float:
    """Seconds of one of several calls in a row."""
    return seconds(lambda: [work() for _ in range(calls)]) / calls


def compare(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> dict[str, float]:
    """Medians and quartiles of alternating runs, after some of each to warm up.

    A run is as many calls as take 20 ms, so that a short call meets neither the clock's grain nor a cache that the
    other side has just filled.
    """
    ours(), theirs()
    calls = [max(1, round(0.02 / seconds(work))) for work in (ours, theirs)]
    a, b = [], []
    for _ in range(pairs):
        a.append(per_call(ours, calls[0]))
        b.append(per_call(theirs, calls[1]))
    return _compared(a, b)


def compare_differences(
    ours: Callable[[int], object], theirs: Callable[[int], object], sizes: tuple[int, int], pairs: int
) -> dict[str, float]:
    """As `compare`, of what one more unit costs: the time of the larger size less that of the smaller, by unit."""
    a, b, units = [], [], sizes[1] - sizes[0]
    for turn in range(pairs + 1):
        for work, found in ((ours, a), (theirs, b)):
            small, large = (seconds(lambda size=size, work=work: work(size)) for size in sizes)
            if turn:
                found.append((large - small) / units)
    return _compared(a, b)


def _compared(a: list[float], b: list[float]) -> dict[str, float]:
    ratios = statistics.quantiles([y / x for x, y in zip(a, b, strict=True)], n=4)
    return {
        "ours_seconds": statistics.median(a),
        "theirs_seconds": statistics.median(b),
        "ratio": statistics.median(b) / statistics.median(a),
        "ratio_low": ratios[0],
        "ratio_high": ratios[2],
    }


class Apart:
    """Work in a process of its own, as its users would run it: what we ask of malloc is not asked of the other side."""

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: object):
        """build(*arguments) makes the work, in the other process; it must be a module's function."""
        context = multiprocessing.get_context("spawn")
        self.line, line = context.Pipe()
        self.process = context.Process(target=_serve, args=(line, build, arguments), daemon=True)
        self.process.start()

    def __call__(self) -> None:
        """Do the work once."""
        self.line.send("go")
        self.line.recv()

    def end(self) -> None:
        """Let the process go."""
        self.process.kill()
        self.process.join()


def _serve(line: Any, build: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> None:
    work = build(*arguments)
    while line.recv() == "go":
        work()
        line.send("done")


def reading_bytes_per_second() -> float:
    """How fast all threads together read memory that no cache holds."""
    x = torch.ones(64 << 20)
    return x.nbytes / median(x.sum)


def require_truth() -> None:
    """End the program unless every backend agrees with the float64 recurrence here."""
    wrong = [f for f in check() if not f.good]
    if wrong:
        sys.exit(f"nothing was measured: {wrong[0]} disagrees with the float64 recurrence")


def describe(*peers: str) -> str:
    """One line on the machine, which also says how busy it is."""
    rates = {n: matmul_flops_per_second(getattr(torch, n)) / 1e9 for n in ("float32", "bfloat16")}
    return (
        f"{platform.processor() or platform.machine()}, kernels {native.active()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {', '.join(peers)}; matrix products {rates['float32']:.0f} (float32) and "
        f"{rates['bfloat16']:.0f} (bfloat16) GFLOP/s; reads {reading_bytes_per_second() / 1e9:.0f} GB/s; "
        f"load {os.getloadavg()[0]:.1f}"
    )
