"""Measure whether this machine is faster in bfloat16."""

from __future__ import annotations

import functools
import time

import torch


@functools.cache
def matmul_flops_per_second(dtype: torch.dtype, device: str = "cpu", size: int = 768) -> float:
    """Return the rate of a square matrix product here: the best of a few tries, well under a second together."""
    a = torch.randn(size, size, device=device).to(dtype)
    best, spent = float("inf"), 0.0
    for attempt in range(8):
        start = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best = min(best, took) if attempt else best  # the first try warms up
        spent += took
        if spent > 0.4 and attempt:
            break
    return 2 * size**3 / best


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16": what was asked for, or for "auto" the faster of the two on this device."""
    if wanted != "auto":
        return wanted
    rates = {name: matmul_flops_per_second(getattr(torch, name), device.type, 512) for name in ("float32", "bfloat16")}
    return "bfloat16" if rates["bfloat16"] > 1.3 * rates["float32"] else "float32"
