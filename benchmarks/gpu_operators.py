"""Operators on a GPU: checked with the float64 recurrence, then timed beside their floors and FLA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from gpu_clock import MESSAGES, Facts, Timing, Work, beside_floor, device, floor, seconds, sets, timed
from gpu_crew import Skip
from gpu_jobs import Shape
from gpu_problems import Problem, problem, segments_of
from torch import Tensor

from interlace.ops.core import gpu
from interlace.ops.core.cases import TOLERANCE, outputs_and_gradients, worse
from interlace.ops.core.self_check import VARIABLE
from interlace.ops.selftest import OPERATORS, Variant, cases, errors

ALLOWED = 4e-2  # relative difference of two bfloat16 forms, each of which may be 2e-2 from the truth
FEW = (512,) * 4  # tokens of a first call


@contextmanager
def unchecked() -> Iterator[None]:
    """Run kernels whatever their self-check says; the section "first calls" has said it."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def check(facts: Facts, operator: str, name: str) -> Iterator[Facts]:
    """Run the cases of `interlace doctor` by the Triton kernels in a dtype: values and gradients against the truth."""
    need_triton(facts, "triton")
    known = {"cross_entropy": "cross_entropy_"}.get(operator, operator)
    dtype, where, variant = getattr(torch, name), device(facts), Variant("triton")
    if facts["pretend"]:
        given = [OPERATORS[known].build([3, 2], "ragged", True)]
    else:
        given = cases(known)
    for case in given:
        case.known[dtype] = outputs_and_gradients(case, case.truth, dtype, torch.float64, "cpu")
    found: list[tuple[float, float | None]] = []

    def work() -> None:
        found.append(errors(given[len(found)], variant, dtype, str(where)))

    with unchecked():
        took = [seconds(work) for _ in given]
    values, gradients = (max(x, key=worse) for x in zip(*found, strict=True))
    assert values is not None
    good = values <= TOLERANCE[dtype] and (gradients is None or gradients <= TOLERANCE[dtype])
    both = f"{values:.1e}, {'-' if gradients is None else f'{gradients:.1e}'}, limit {TOLERANCE[dtype]:.0e}"
    text = f"{'good' if good else 'WRONG'}: {both}; {sum(took):.1f} s, the first of {len(given)} {took[0]:.1f} s"
    row = {"values": values, "gradients": gradients, "allowed": TOLERANCE[dtype], "first_seconds": took[0]}
    yield {"text": text, "good": good, "check_seconds": sum(took), **row}


def need_triton(facts: Facts, backend: str) -> None:
    """Without a GPU, a machine without Triton has nothing to interpret kernels with."""
    if facts["pretend"] and backend == "triton" and (reason := gpu.missing()):
        raise Skip(reason)


def first(facts: Facts, shape: Shape) -> Iterator[Facts]:
    """Call an operator for the first time, every way that will be timed: kernels are compiled, and checked by it."""
    if not facts["pretend"] and shape.operator in ("gated_delta", "kimi_delta"):
        shape = replace(shape, lengths=FEW)  # the same kernels; many processes share the GPU's memory
    found = problem(shape, device(facts))
    need_triton(facts, found.backend)
    steps = [problem(s, device(facts)) for s in shape.steps()]

    def work() -> None:
        with torch.no_grad():
            found.outputs()
        if facts["pretend"]:  # nothing is compiled, and what comes next calls the rest
            return
        for p in steps:
            with torch.no_grad():
                p.outputs()
        outputs = differentiated(found)
        backward(found, [torch.randn_like(y) for y in outputs], outputs)()

    took = seconds(work)
    notes = list(dict.fromkeys(MESSAGES.found))
    yield {"text": "; ".join([f"{took:.1f} s", *notes]), "notes": notes, "good": not notes, "first_seconds": took}


def operator(facts: Facts, shape: Shape) -> Iterator[Facts]:
    """Time an operator forward, backward and for one token, beside its floors."""
    where = device(facts)
    found = problem(shape, where)
    need_triton(facts, found.backend)
    with unchecked():
        yield from _compared(found)
        yield from passes(facts, shape, found.backend)
        del found
        for one in shape.steps():
            found = problem(one, where)
            several = [found, *(problem(one, where, i + 1) for i in range(sets(facts, found.read) - 1))]
            t, written = _without_gradients(facts, several, found.backend)
            yield _row(facts, one, f"one token, {len(one.lengths)} rows", t, (found.read + written, 0))


def passes(facts: Facts, shape: Shape, backend: str) -> Iterator[Facts]:
    """Time forward and backward; a loss that forms its gradients itself has one line for both."""
    where = device(facts)
    found = problem(shape, where)
    several = [found, *(problem(shape, where, i + 1) for i in range(sets(facts, found.read) - 1))]
    flops = shape.flops()
    gradients = sum(x.nbytes for x in found.wanted)
    if shape.operator == "cross_entropy":
        work = [_both(p, backend) for p in several]
        cost = (found.read + gradients, sum(flops))
        yield _row(facts, shape, "forward + backward", timed(facts, work), cost)
        return
    t, written = _without_gradients(facts, several, backend)
    yield _row(facts, shape, "forward", t, (found.read + written, flops[0]))
    work, ends = [], 0
    for p in several:
        outputs = differentiated(p, backend)
        ends = sum(y.nbytes for y in outputs)
        work.append(backward(p, [torch.randn_like(y) for y in outputs], outputs))
    yield _row(facts, shape, "backward", timed(facts, work), (found.read + ends + gradients, flops[1]))


def _without_gradients(facts: Facts, several: Sequence[Problem], backend: str) -> tuple[Timing, int]:
    """Return the time of a call, and how many bytes it writes."""
    written = 0

    def work(p: Problem) -> Work:
        def run() -> None:
            nonlocal written
            with torch.no_grad():
                written = sum(y.nbytes for y in p.outputs(backend))

        return run

    return timed(facts, [work(p) for p in several]), written


def differentiated(p: Problem, backend: str = "") -> list[Tensor]:
    outputs = p.outputs(backend)
    return outputs[: len(outputs) - p.kept]


def backward(p: Problem, d_outputs: list[Tensor], outputs: list[Tensor]) -> Work:
    return lambda: torch.autograd.grad(outputs, p.wanted, d_outputs, retain_graph=True)


def _both(p: Problem, backend: str) -> Work:
    return lambda: torch.autograd.grad(differentiated(p, backend), p.wanted)


def _compared(p: Problem) -> Iterator[Facts]:
    """Compare the outputs at the measured shape with those of a plainer form."""
    if not p.plain and p.truth is None:
        return
    with torch.no_grad():
        ours = p.outputs()
        theirs = p.truth() if p.truth is not None else p.outputs(p.plain)
    off = max(difference(a, b) for a, b in zip(ours, theirs, strict=True))
    good = off <= ALLOWED
    against = p.plain or "torch"
    text = f"{off:.1e} from {against}'s, {'good' if good else f'WRONG: {ALLOWED:.0e} is allowed'}"
    yield {"part": "values", "text": text, "difference": off, "against": against, "good": good}


def difference(value: Tensor, truth: Tensor) -> float:
    """Return ||value - truth|| / ||truth||, computed where they lie; NaN stays NaN."""
    value, truth = value.detach().float(), truth.detach().float()
    return float((value - truth).norm() / truth.norm().clamp(min=1e-30))


def _row(facts: Facts, shape: Shape, part: str, t: Timing, cost: tuple[float, float]) -> Facts:
    """Return a line: milliseconds, nanoseconds per token and head, how many times the floor."""
    row = {**t.to_dict(), **floor(facts, *cost), "ns": 1e9 * t.seconds / (shape.total * shape.heads)}
    unit = "ns/token/head" if shape.heads > 1 else "ns/token"
    text = f"{row['ms']:.3f} ms, {row['ns']:.4g} {unit}{beside_floor(row)}"
    if t.host > 1.2 * t.seconds:
        text += f"; the host needs {row['host_ms']:.2f} ms"
    notes = list(dict.fromkeys(MESSAGES.found))
    if notes:
        text += f"; {notes[0]}"
    return {"part": part, "text": text, "notes": notes, **row}


def chunked(facts: Facts, shape: Shape) -> Iterator[Facts]:
    """Time the backend "chunked", which any GPU can run."""
    for row in passes(facts, shape, "chunked"):
        yield {**row, "beside": [str(shape), row["part"]]}


def fla(facts: Facts, shape: Shape) -> Iterator[Facts]:
    """Time FLA's kernels on the same inputs, and compare its outputs with ours."""
    if facts["pretend"]:
        raise Skip("FLA's kernels need a GPU")
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    where = device(facts)
    several = [problem(shape, where)]
    several += [problem(shape, where, i + 1) for i in range(sets(facts, several[0].read) - 1)]
    ragged = len(set(shape.lengths)) > 1
    batch = 1 if ragged else len(shape.lengths)
    more: dict[str, Any] = {"use_qk_l2norm_in_kernel": True}
    if ragged:
        more["cu_seqlens"] = segments_of(shape.lengths).offsets.to(where, torch.int64)

    def run(p: Problem) -> Tensor:
        return chunk_gated_delta_rule(*(x.unflatten(0, (batch, -1)) for x in p.wanted), **more)[0].flatten(0, 1)

    def forward(p: Problem) -> Work:
        def work() -> None:
            with torch.no_grad():
                run(p)

        return work

    with torch.no_grad(), unchecked():
        off = difference(run(several[0]), several[0].outputs()[0])
    row = _row(facts, shape, "forward", timed(facts, [forward(p) for p in several]), (0, 0))
    yield {**row, "beside": [str(shape), "forward"], "difference": off, "text": f"{row['text']}, differs by {off:.1e}"}
    try:
        outputs = [run(p) for p in several]
        pairs = zip(several, outputs, strict=True)
        work = [backward(p, [torch.randn_like(y)], [y]) for p, y in pairs]
        row = _row(facts, shape, "backward", timed(facts, work), (0, 0))
        yield {**row, "beside": [str(shape), "backward"]}
    except Exception as error:  # FLA 0.6.0 refuses its backward on Hopper with Triton 3.4 to 3.7.0
        lines = str(error).strip().splitlines() or [""]
        yield {"part": "backward", "text": f"refused: {type(error).__name__}: {lines[0]:.150}", "refused": True}
