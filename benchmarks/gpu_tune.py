"""Time configurations of gated_delta's Triton kernels, each compared with the default one first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from gpu_clock import Facts, device, seconds, timed
from gpu_crew import Skip
from gpu_jobs import Shape
from gpu_operators import ALLOWED, backward, difference, differentiated, need_triton, unchecked
from gpu_problems import problem
from torch import Tensor

from interlace.ops.core import gpu
from interlace.ops.gated_delta import triton as kernels
from interlace.ops.gated_delta.triton import Tiles

TOKENS = 256  # of a first call, enough to compile


@contextmanager
def using(change: dict[str, int], of: Callable[..., Tiles] = kernels.tiles) -> Iterator[None]:
    """Let the kernels have another configuration."""

    def changed(*arguments: Any) -> Tiles:
        found = of(*arguments)._replace(**change)
        columns, keys = gpu.power(arguments[2]), gpu.power(arguments[1])
        return found._replace(
            values=min(found.values, columns), columns=min(found.columns, columns), keys=min(found.keys, keys)
        )

    kernels.tiles = changed
    try:
        with unchecked():
            yield
    finally:
        kernels.tiles = of


@contextmanager
def spills() -> Iterator[dict[str, int]]:
    """Collect how many registers of each kernel lie in memory, as the compiler counts them."""
    found: dict[str, int] = {}
    plain = gpu.launch

    def launch(
        kernel: Any, programs: int, arguments: Sequence[Any], constants: dict[str, Any], warps: int, stages: int = 2
    ) -> None:
        if programs:
            made = kernel[(programs,)](*arguments, **constants, num_warps=warps, num_stages=stages)
            found[kernel.__name__] = max(found.get(kernel.__name__, 0), getattr(made, "n_spills", None) or 0)

    gpu.launch = launch
    try:
        yield found
    finally:
        gpu.launch = plain


def compile(facts: Facts, shapes: Sequence[Shape], part: str, change: dict[str, int]) -> Iterator[Facts]:
    """Call the kernels once on a few tokens, so that the compiler's cache has them."""
    need_triton(facts, "triton")
    took = 0.0
    with using(change):
        for shape in shapes:
            few = shape if facts["pretend"] else replace(shape, lengths=(TOKENS,) * 2)
            p = problem(few, device(facts))
            took += seconds(lambda p=p: _results(p))
    yield {"text": f"{took:.1f} s", "first_seconds": took}


def _results(p: Any) -> list[Tensor]:
    with torch.no_grad():
        p.outputs()
    outputs = differentiated(p)
    torch.manual_seed(1)  # the same for every configuration
    draw = [torch.randn_like(y) for y in outputs]
    return [*outputs, *backward(p, draw, outputs)()]


def measure(facts: Facts, shapes: Sequence[Shape], part: str, change: dict[str, int]) -> Iterator[Facts]:
    """Time a configuration, forward and backward over all shapes; one that spills is only named."""
    need_triton(facts, "triton")
    best = facts.get("tuned scan", {}) if part == "gradients" else {}
    forward = back = 0.0
    for shape in shapes:
        p = problem(shape, device(facts))
        with unchecked():
            truth = _results(p)
        with using({**best, **change}):
            with spills() as spilled:
                found = _results(p)
            if sum(spilled.values()):
                raise Skip(f"spills: {', '.join(f'{k} {v}' for k, v in spilled.items() if v)}")
            off = max(difference(a, b) for a, b in zip(found, truth, strict=True))
            if not off <= ALLOWED:
                yield {"text": f"WRONG: differs from the default by {off:.1e}", "good": False, "difference": off}
                return
            outputs = differentiated(p)
            work = backward(p, [torch.randn_like(y) for y in outputs], outputs)
            with torch.no_grad():
                forward += timed(facts, [p.outputs]).seconds
            back += timed(facts, [work]).seconds
    ms = 1e3 * (forward + back)
    row: Facts = {"ms": ms, "forward_ms": 1e3 * forward, "backward_ms": 1e3 * back, "change": change}
    if ms < facts.get(f"tuned {part} ms", float("inf")):
        row["facts"] = {f"tuned {part}": {**best, **change}, f"tuned {part} ms": ms}
    yield {"text": f"{ms:.3f} ms, forward {1e3 * forward:.3f}, backward {1e3 * back:.3f}", **row}


def best(facts: Facts, shapes: Sequence[Shape]) -> Iterator[Facts]:
    """Print the fastest configuration as a row of `TILES`, beside the time of the default one."""
    need_triton(facts, "triton")
    chosen = facts.get("tuned gradients") or facts.get("tuned scan")
    if not chosen:
        raise Skip("no configuration was measured")
    ms = facts.get("tuned gradients ms") or facts["tuned scan ms"]
    architecture = gpu.architecture(device(facts))
    default = kernels.tiles(architecture, 128, 128, torch.bfloat16)
    row = default._replace(**chosen)
    usual = next(iter(measure(facts, shapes, "default", {})))
    text = f"{architecture}: {row},  # {ms:.3f} ms; the default {default} took {usual.get('ms', float('nan')):.3f} ms"
    yield {"text": text, "tiles": row._asdict(), "ms": ms, "default_ms": usual.get("ms")}
