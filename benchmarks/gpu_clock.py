"""Time work on a GPU by events, and find the ceilings of a machine; without a GPU, by the host's clock."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interlace.runs.machine import processor
from interlace.runs.versions import versions

Facts = dict[str, Any]
Work = Callable[[], object]
PEERS = {"fla": "fla-core", "transformers": "transformers", "causal_conv1d": "causal-conv1d"}  # module: package
SECONDS, LEAST, MOST = 0.25, 10, 50  # of the repeats of a measurement
CYCLES = 2e9  # a second of a GPU's clock, about


class _Messages(logging.Handler):
    """Keeps what the package announces: that a slower backend had to serve, and why."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


MESSAGES = _Messages()
logging.getLogger("interlace").addHandler(MESSAGES)
logging.getLogger("interlace").propagate = False


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median of many; the first one, which compiles; what the host needs to ask for one."""

    seconds: float
    first: float
    host: float
    repeats: int

    def to_dict(self) -> Facts:
        """Return plain data, with milliseconds."""
        row = {"ms": self.seconds * 1e3, "first_seconds": self.first, "host_ms": self.host * 1e3}
        return {**row, "repeats": self.repeats}


def device(facts: Facts) -> torch.device:
    """Return where everything is measured."""
    return torch.device("cpu" if facts["pretend"] else "cuda")


def synchronise() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def released() -> bool:
    """Free what the last job held; return whether the GPU still answers."""
    gc.collect()
    MESSAGES.found.clear()
    try:
        synchronise()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    except RuntimeError:
        return False
    return True


def seconds(work: Work) -> float:
    """Return how long work takes by the host's clock, the GPU's part included."""
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def timed(facts: Facts, works: Sequence[Work]) -> Timing:
    """Time work on several sets of inputs in turn: first call, warm-up, then the median. On a CPU: one call.

    The GPU waits while the host asks for all repeats, so launches leave no gaps; what the host needs stands apart.
    """
    first = seconds(works[0])
    if facts["pretend"]:
        return Timing(first, first, first, 1)
    for work in works[1:]:
        work()
    once = max(seconds(works[0]), 1e-6)
    repeats = min(MOST, max(LEAST, int(SECONDS / once)))
    host = _asked([works[i % len(works)] for i in range(3)])
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    torch.cuda._sleep(int(CYCLES * min(0.2, 1.5 * host * repeats)))
    for i, (begin, end) in enumerate(events):
        begin.record()
        works[i % len(works)]()
        end.record()
    synchronise()
    return Timing(statistics.median(a.elapsed_time(b) for a, b in events) / 1e3, first, host, repeats)


def _asked(works: Sequence[Work]) -> float:
    """Return how long the host takes to ask for one call, while the GPU is busy with something else."""
    synchronise()
    torch.cuda._sleep(int(CYCLES * 0.02))
    start = time.perf_counter()
    for work in works:
        work()
    found = (time.perf_counter() - start) / len(works)
    synchronise()
    return found


def sets(facts: Facts, nbytes: int) -> int:
    """Return how many sets of inputs of so many bytes do not fit into the L2 cache together."""
    if facts["pretend"]:
        return 1
    return min(32, max(1, -(-2 * facts.get("l2_bytes", 1 << 26) // max(1, nbytes))))


def floor(facts: Facts, nbytes: float, flops: float) -> Facts:
    """Return the least milliseconds that bytes and operations take at the measured ceilings, and which is larger."""
    if not facts.get("copy_bytes_per_second") or not facts.get("matmul_flops_per_second"):
        return {}
    moved, computed = nbytes / facts["copy_bytes_per_second"], flops / facts["matmul_flops_per_second"]
    by = "bytes" if moved >= computed else "operations"
    return {"floor_ms": 1e3 * max(moved, computed), "floor_by": by, "bytes": nbytes, "flops": flops}


def beside_floor(row: Facts) -> str:
    """Return how many times its floor a measured row takes, after a comma."""
    return f", {row['ms'] / row['floor_ms']:.1f} x floor ({row['floor_by']})" if row.get("floor_ms") else ""


def machine(facts: Facts) -> Iterator[Facts]:
    """Say what machine this is, and measure the two ceilings."""
    found = {name: _version(package) for name, package in PEERS.items()}
    known = {**versions("triton"), **{k: v for k, v in found.items() if v}}
    here = device(facts)
    about: Facts = {"versions": known, "found": [k for k, v in found.items() if v], "cpu": processor()}
    if here.type == "cuda":
        about |= _gpu()
        yield {"part": "gpu", "text": about["gpu_text"], "facts": about, **about}
    else:
        about |= {"l2_bytes": 1 << 20}
        yield {"part": "gpu", "text": f"none: {processor()}, {os.cpu_count()} cores", "facts": about, **about}
    yield {"part": "software", "text": ", ".join(f"{k} {v}" for k, v in known.items())}
    absent = [k for k, v in found.items() if not v]
    yield {"part": "peers", "text": f"not installed: {', '.join(absent) or 'none'}"}
    yield from _ceilings(facts, here)


def _gpu() -> Facts:
    p = torch.cuda.get_device_properties(0)
    about: Facts = {
        "gpu": p.name,
        "capability": f"{p.major}.{p.minor}",
        "processors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": getattr(p, "L2_cache_size", 0) or 1 << 26,
        "driver": _driver(),
        "cuda": torch.version.cuda or torch.version.hip,
    }
    about["gpu_text"] = (
        f"{p.name} ({about['capability']}), {p.multi_processor_count} processors, {p.total_memory / 2**30:.0f} GiB, "
        f"L2 {about['l2_bytes'] / 2**20:.0f} MiB, driver {about['driver']}, CUDA {about['cuda']}"
    )
    return about


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _ceilings(facts: Facts, here: torch.device) -> Iterator[Facts]:
    count, size = (1 << 20, 128) if facts["pretend"] else (1 << 31, 8192)
    source = torch.randn(count // 8, device=here).bfloat16().repeat(8)
    target = torch.empty_like(source)
    t = timed(facts, [lambda: target.copy_(source)])  # noqa: F821 - deleted after the last use
    rate = 2 * source.nbytes / t.seconds
    text = f"{rate / 1e12:.3f} TB/s, {2 * source.nbytes / 1e9:.1f} GB read and written"
    row = {"copy_bytes_per_second": rate}
    yield {"part": "copy", "text": text, "facts": row, **row, **t.to_dict()}
    del source, target
    a, b = (torch.randn(size, size, device=here).bfloat16() for _ in range(2))
    t = timed(facts, [lambda: a @ b])
    rate = 2 * size**3 / t.seconds
    row = {"matmul_flops_per_second": rate}
    text = f"{rate / 1e12:.1f} TFLOP/s, bfloat16, {size} cubed, random data"
    yield {"part": "matrix product", "text": text, "facts": row, **row, **t.to_dict()}
