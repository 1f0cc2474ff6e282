"""Laws 1 to 5 for every operator, from the table of nasty inputs in `interlace.ops.selftest`."""

from __future__ import annotations

import importlib
from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import interlace.ops as ops
from interlace.base.segments import Segments
from interlace.ops import selftest
from interlace.ops.core import chunks
from interlace.ops.core import kernels as native
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.cases import Case, recurrence_case
from interlace.ops.core.operands import Recurrence

ALL = [case for operator in selftest.OPERATORS for case in selftest.cases(operator)]
INTERPRETED = {"one token", "ragged, state"}  # the interpreter takes seconds for a case


def taken(case, variant):
    """Triton's interpreter takes the shortest cases; a scan by tokens would take minutes (tests/ops/test_triton.py)."""
    short = case.label in INTERPRETED and case.operator != "selective_scan"
    return variant.backend != "triton" or short


VARIANTS = [(case, v) for case in ALL for v in selftest.variants(case.operator) if taken(case, v)]


def label(value):
    return f"{value.operator}: {value.label}" if isinstance(value, Case) else str(value)


def marked(case, variant):
    slow = variant.backend == "triton" and case.label == "ragged, state" and case.operator.endswith("_delta")
    return pytest.param(case, variant, marks=pytest.mark.slow) if slow else (case, variant)


@pytest.mark.parametrize(("case", "variant"), [marked(*each) for each in VARIANTS], ids=label)
def test_every_backend_equals_the_float64_recurrence(case, variant):
    """Laws 1 and 2: values and gradients, the state's gradient too, on every instruction set of this processor."""
    dtypes = [dtype for dtype in selftest.TOLERANCE if variant.serves(dtype)]
    if variant.backend == "triton" and (
        case.label != "ragged, state" or case.operator in ("kimi_delta", "state_space")
    ):
        dtypes = [torch.float32]  # seconds for each; GPUs check bfloat16 by themselves
    for dtype in dtypes:
        values, gradients = selftest.errors(case, variant, dtype)
        assert values <= selftest.TOLERANCE[dtype], dtype
        assert gradients is None or gradients <= selftest.TOLERANCE[dtype], dtype


def test_the_table_is_nasty():
    """The inputs reach every border that the laws promise to test."""
    cases = selftest.cases("gated_delta")
    beta = torch.cat([c.tensors["beta"].flatten() for c in cases])
    decay = torch.cat([c.tensors["log_decay"].flatten() for c in cases])
    assert {0.0, 1.0, 2.0} <= set(beta.tolist())
    assert bool((decay == -30).any())
    assert bool((decay == 0).any())
    assert {c.tensors["query"].shape[1] != c.tensors["value"].shape[1] for c in cases} == {True}
    assert all(c.tensors["key"].shape[2] != c.tensors["value"].shape[2] for c in cases)
    parallel = cases[-1].tensors["key"][:, 0]
    assert bool(((parallel @ parallel.T).fill_diagonal_(0) > 0.8).any())


RUNS = [("auto", torch.float64)] + [(name, torch.float32) for name in native.instruction_sets()]
every_run = pytest.mark.parametrize(("kernels", "dtype"), RUNS, ids=str)


def running(kernels):
    """The native kernels of one instruction set, or whatever `auto` picks."""
    return nullcontext() if kernels == "auto" else native.using(kernels)


def close(dtype):
    """float64: sums in another order. float32: as in the table of tolerances, per element and not per norm."""
    return {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}


def given(case, dtype):
    return {n: x.to(dtype) for n, x in case.tensors.items()}


def cut(case, tensors, lengths, pieces):
    """Run a case's operator piece by piece, carrying the state, each segment cut in the same number of pieces."""
    spans = Segments.from_lengths(lengths).spans()
    state, outputs = tensors.get("state"), []
    bounds = [[a + (b - a) * p // pieces for p in range(pieces + 1)] for a, b in spans]
    for p in range(pieces):
        rows = torch.cat([torch.arange(x[p], x[p + 1]) for x in bounds])
        segments = Segments.from_lengths([x[p + 1] - x[p] for x in bounds])
        part = {n: x if n in case.shared else x[rows] for n, x in tensors.items() if n != "state"}
        if case.operator == "attention" and state is None:
            window = case.options.get("window")
            state = AttentionState.empty(len(lengths), 2, 12, 20, window, tensors["key"])
        out, state = getattr(ops, case.operator)(**part, **case.options, segments=segments, state=state)
        outputs.append((rows, out))
    whole = torch.empty(sum(lengths), *outputs[0][1].shape[1:], dtype=outputs[0][1].dtype)
    for rows, out in outputs:
        whole[rows] = out
    return whole, state


@every_run
@pytest.mark.parametrize("operator", selftest.MIXERS)
@pytest.mark.parametrize("extra", [False, True], ids=["plain", "state or window"])
@pytest.mark.parametrize("pieces", [2, 5])
def test_any_cut_carries_the_state(operator, extra, pieces, kernels, dtype):
    """Law 3, on ragged segments that are all cut; with as many pieces as tokens where a segment is that short."""
    lengths = [37, 5, 70]
    case = selftest.OPERATORS[operator].build(lengths, "cut, state" if extra else "cut", extra)
    with torch.no_grad(), running(kernels):
        truth = case.call(case.truth, case.tensors)
        found, state = cut(case, given(case, dtype), lengths, pieces)
    torch.testing.assert_close(found.double(), truth[0], **close(dtype))
    if isinstance(state, torch.Tensor):
        torch.testing.assert_close(state.double(), truth[1], **close(dtype))


@every_run
@pytest.mark.parametrize("operator", selftest.MIXERS)
def test_token_by_token_equals_prefill(operator, kernels, dtype):
    """Law 5: one token for each of three sequences at a time, which takes the step kernels."""
    lengths = [70, 70, 70]
    case = selftest.OPERATORS[operator].build(lengths, "tokens, state", True)
    with torch.no_grad(), running(kernels):
        truth = case.call(case.truth, case.tensors)
        found, _ = cut(case, given(case, dtype), lengths, 70)
    torch.testing.assert_close(found.double(), truth[0], **close(dtype))


@every_run
@pytest.mark.parametrize("operator", selftest.MIXERS)
def test_packed_segments_equal_separate_runs(operator, kernels, dtype):
    """Law 4, with one sequence so large that a leak of 1e-90 of it (in float32, of 1e-30) would show."""
    lengths = [3, 1, 66, 20]
    case = selftest.OPERATORS[operator].build(lengths, "packed", False)
    tensors = given(case, dtype)
    poisoned = "value" if "value" in tensors else "x"
    tensors[poisoned] = tensors[poisoned].clone()
    tensors[poisoned][4:70] *= 1e100 if dtype == torch.float64 else 1e30
    with torch.no_grad(), running(kernels):
        served = {v.backend for v in selftest.variants(operator)}
        first = next(b for b in ("chunked", "fourier") if b in served)
        backend = "native" if kernels != "auto" and "native" in served else first
        packed = case.call(backend, tensors)[0]
        for a, b in Segments.from_lengths(lengths).spans():
            alone = {n: x if n in case.shared else x[a:b] for n, x in tensors.items()}
            out = getattr(ops, operator)(**alone)[0]
            near = close(dtype)
            near["atol"] *= max(1.0, float(out.abs().max()))  # the poisoned sequence itself rounds at its own size
            torch.testing.assert_close(packed[a:b], out, **near)


@every_run
@pytest.mark.parametrize("operator", selftest.MIXERS)
def test_gradients_pass_through_a_cut(operator, kernels, dtype):
    """Law 3, gradients: two calls with a carried state against one."""
    case = selftest.OPERATORS[operator].build([40], "whole", False)
    results = []
    for cuts in ([40], [23, 17]):
        inputs = {n: x.to(dtype).requires_grad_() for n, x in case.tensors.items()}
        state, outputs, start = None, [], 0
        with running(kernels):
            for size in cuts:
                part = {n: x if n in case.shared else x[start : start + size] for n, x in inputs.items()}
                out, state = getattr(ops, operator)(**part, state=state)
                outputs.append(out)
                start += size
            joined = torch.cat(outputs).flatten(1)
            total = (joined * torch.linspace(-1, 1, joined.shape[1], dtype=dtype)).sum()
            results.append(torch.autograd.grad(total, list(inputs.values())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **close(dtype))


@pytest.mark.parametrize("operator", ["gated_delta", "kimi_delta", "state_space"])
def test_flops_of_the_chunked_form_are_what_is_predicted(operator):
    """Law 6 for operators: counted in the running code, on whole chunks."""
    H, G, K, V, T = 2, 4, 12, 20, 256
    chunked = importlib.import_module(f"interlace.ops.{operator}.chunked")
    flops = importlib.import_module(f"interlace.ops.{operator}.flops").flops_per_token_and_head
    case = recurrence_case(operator, [T], "flops", True)
    names = ("query", "key", "value", "log_decay", "step" if "space" in operator else "beta")
    segments = Segments.from_lengths([T])
    x = Recurrence.of([case.tensors[n] for n in names], segments, case.tensors["state"], 1.0)
    (grid,) = [
        c for c in vars(chunked).values() if getattr(c, "__module__", "") == chunked.__name__ and isinstance(c, type)
    ]
    with FlopCounterMode(display=False) as counter:
        chunks.forward(grid, x)
    group = () if operator == "kimi_delta" else (G // H,)
    assert counter.get_total_flops() == T * G * flops(K, V, *group)
