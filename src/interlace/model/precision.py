"""Measure whether this machine is faster in bfloat16."""

from __future__ import annotations

import functools
import time

import torch

GPU_SIZE = 4096  # of a product that fills a GPU
GPU_PRODUCTS = 8  # that are enqueued at a time: the host's part is then small


@functools.cache
def matmul_flops_per_second(dtype: torch.dtype, device: str = "cpu", size: int = 768) -> float:
    """Return the rate of a square matrix product here: the best of a few tries, well under a second together.

    A GPU multiplies matrices of at least 4,096 rows, several between two looks at the clock.
    """
    on_cpu = torch.device(device).type == "cpu"
    size, products = (size, 1) if on_cpu else (max(size, GPU_SIZE), GPU_PRODUCTS)
    a = torch.randn(size, size, device=device).to(dtype)
    best, spent = float("inf"), 0.0
    for attempt in range(8):
        start = time.perf_counter()
        for _ in range(products):
            a @ a
        if not on_cpu:
            torch.accelerator.synchronize(torch.device(device))
        took = (time.perf_counter() - start) / products
        best = min(best, took) if attempt else best  # the first try warms up
        spent += took * products
        if spent > 0.4 and attempt:
            break
    return 2 * size**3 / best


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16": what was asked for, or for "auto" the faster of the two on this device."""
    if wanted != "auto":
        return wanted
    rates = {name: matmul_flops_per_second(getattr(torch, name), str(device), 512) for name in ("float32", "bfloat16")}
    return "bfloat16" if rates["bfloat16"] > 1.3 * rates["float32"] else "float32"
