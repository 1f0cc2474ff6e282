"""Attention on a GPU, as far as a CPU can say: how torch's ragged kernel is called, and kernels of a decoded token."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interlace.base.errors import BackendUnavailable
from interlace.base.segments import Segments
from interlace.ops.attention import cases, varlen
from interlace.ops.attention.step import Step, masked
from interlace.ops.core import backends, gpu, self_check
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.cases import LENGTHS, TOLERANCE, measured, relative

dispatch = importlib.import_module("interlace.ops.attention.dispatch")
triton_only = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())

# torch's kernel for ragged sequences. What stands for it takes the arguments of a release, and checks as it does.


def ragged(q, k, v, offsets, scale, left):
    """The rule of FlashAttention: key s is seen by query t if t - left <= s <= t; left < 0 for all."""
    outputs = []
    for a, b in itertools.pairwise(offsets.tolist()):
        keys, values = (x[a:b].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = scale * torch.einsum("thk,shk->hts", q[a:b], keys)
        t, s = torch.arange(b - a)[:, None], torch.arange(b - a)
        seen = (s <= t) & ((s >= t - left) | (left < 0))
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
        outputs.append(torch.einsum("hts,shv->thv", weights, values))
    return torch.cat(outputs)


def check(q, k, v, offsets, other, most_q, most_k):
    assert offsets.dtype == torch.int32
    assert offsets is other or torch.equal(offsets, other)
    assert most_q == most_k
    assert max(b - a for a, b in itertools.pairwise(offsets.tolist())) <= most_q < 2 * int(offsets.diff().max())
    assert q.shape[2] == k.shape[2] == v.shape[2]
    assert all(x.shape[2] % 8 == 0 and x.stride(2) == 1 and x.stride(0) % 8 == x.stride(1) % 8 == 0 for x in (q, k, v))


def newest(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    check(q, k, v, cu_q, cu_k, max_q, max_k)
    assert enable_gqa or q.shape[1] == k.shape[1]
    assert window_size[1] == 0
    return ragged(q, k, v, cu_q, scale, window_size[0])


def without_groups(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    return newest(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size)


def without_window(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, *, scale=None):
    assert is_causal
    return newest(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=(-1, 0))


RELEASES = [newest, without_groups, without_window]


@pytest.fixture(params=RELEASES, ids=lambda f: f.__name__)
def release(request, monkeypatch):
    monkeypatch.setattr(varlen, "load", lambda: request.param)
    return request.param


def on_this_cpu(monkeypatch):
    """The row as it is, but for the device."""
    rows = {b.name: b for b in dispatch.BACKENDS}
    row = rows["varlen"]
    served = type(row)("varlen", lambda: dispatch._run_varlen, ("cpu",), row.refuses, when=row.when)
    monkeypatch.setattr(dispatch, "BACKENDS", (served, rows["chunked"], rows["recurrent"]))
    return served


@pytest.mark.parametrize("label", ["one token", "many single tokens", "equal", "ragged"])
@pytest.mark.parametrize("windowed", [False, True])
def test_the_ragged_kernel_gets_what_the_law_asks_for(release, monkeypatch, label, windowed):
    """Values and gradients, in float64; heads of 12 and 20 are one size for the kernel."""
    if windowed and release is without_window:
        pytest.skip("refused")
    monkeypatch.setattr(varlen, "refuses", lambda *_: None)
    on_this_cpu(monkeypatch)
    case = cases.OPERATOR.build(LENGTHS[label], label, windowed)
    values, gradients = measured(case, "varlen", torch.float64, "cpu")
    assert max(values, gradients) < TOLERANCE[torch.float64]


def test_bfloat16_is_served_and_the_rest_says_why_not(release, monkeypatch):
    on_this_cpu(monkeypatch)

    def attend(dtype=torch.bfloat16, size=16, window=None, backend="varlen"):
        draw = [torch.randn(5, heads, size, dtype=dtype) for heads in (4, 2, 2)]
        return dispatch.attention(*draw, window=window, segments=Segments.from_lengths([2, 3]), backend=backend)

    out, state = attend()
    assert out.dtype == torch.bfloat16
    assert state.positions == [2, 3]
    for wrong, reason in ({"dtype": torch.float32}, "takes bfloat16, not float32"), ({"size": 264}, "heads of 264"):
        with pytest.raises(BackendUnavailable, match=reason):
            attend(**wrong)
    with pytest.raises(BackendUnavailable, match="a past"):
        dispatch.attention(
            *[torch.zeros(2, 2, 16).bfloat16()] * 3, state=state, segments=Segments.equal(2, 1), backend="varlen"
        )
    if release is without_window:
        with pytest.raises(BackendUnavailable, match="has no window"):
            attend(window=2)


def test_a_cpu_is_not_told_of_a_kernel_for_gpus(monkeypatch, caplog):
    rows = [row for row in dispatch.BACKENDS if row.name != "native"]
    monkeypatch.setattr(dispatch, "BACKENDS", rows)
    backends.announce.cache_clear()
    dispatch.attention(*[torch.zeros(2, 2, 16)] * 3)
    assert not caplog.records


def test_a_window_counts_the_token_itself():
    known = varlen.takes(newest)
    assert varlen.options(known, 1.0, 5, 100)["window_size"] == (4, 0)
    assert varlen.options(known, 1.0, 1, 100)["window_size"] == (0, 0)
    assert varlen.options(known, 1.0, 100, 100)["window_size"] == (-1, 0)  # a plain causal mask is faster
    assert varlen.options(varlen.takes(without_window), 0.5, None, 9) == {"scale": 0.5, "is_causal": True}


def test_rows_that_the_kernel_could_not_load_are_copied():
    wide = torch.zeros(6, 3 * 16 + 1)
    assert varlen.fitting(wide[:, :32].unflatten(1, (2, 16)), 16).is_contiguous()  # 49 elements apart
    good = torch.zeros(6, 64)[:, 16:48].unflatten(1, (2, 16))
    assert varlen.fitting(good, 16) is good
    assert varlen.fitting(torch.zeros(6, 64)[:, 4:36].unflatten(1, (2, 16)), 16).is_contiguous()


def test_this_torch_has_what_is_asked_for():
    assert {"scale", "window_size"} <= varlen.takes(varlen.load())


def test_a_kernel_that_fails_its_check_is_passed_over(monkeypatch, tmp_path):
    def wrong(*given, window_size=(-1, -1), **more):
        return newest(*given, window_size=(window_size[0] + 1, 0), **more)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(self_check, "_verdicts", {})
    monkeypatch.setattr(gpu, "CHECKED", ("cpu",))
    monkeypatch.setattr(varlen, "load", lambda: wrong)
    on_this_cpu(monkeypatch)
    x = torch.randn(4, 2, 8).bfloat16()
    with pytest.raises(BackendUnavailable, match="its self-check on this GPU failed: values are off"):
        dispatch.attention(x, x, x, window=2, backend="varlen")
    monkeypatch.setattr(varlen, "load", lambda: newest)
    monkeypatch.setattr(self_check, "_verdicts", {})
    self_check.file().unlink()
    dispatch.attention(x, x, x, window=2, backend="varlen")


# One decoded token


def decoded(lengths, window, run, heads=(4, 2), sizes=(12, 20), capacity=0, steps=3, dtype=torch.float64):
    """Give sequences of these lengths a few more tokens; return what was found beside the truth."""
    (H, J), (K, V), N = heads, sizes, len(lengths)
    whole = Segments.from_lengths([n + steps for n in lengths])
    q, k, v = (torch.randn(whole.total, *s).to(dtype) for s in ((H, K), (J, K), (J, V)))
    want, _ = dispatch.attention(*(x.double() for x in (q, k, v)), segments=whole, window=window, backend="recurrent")
    old = torch.cat([torch.arange(a, b - steps) for a, b in whole.spans()])
    state = AttentionState.empty(N, J, K, V, window, k, capacity or max(lengths) + steps)
    state = state.append(k[old], v[old], Segments.from_lengths(lengths))
    places, last = torch.tensor(state.positions), torch.tensor([b - steps for _, b in whole.spans()])
    if state.room < steps:
        state._make_room(max(state.positions) + steps)
    state.clear_unseen()
    buffers = [x.data_ptr() for x in state.tensors()]
    found = []
    for t in range(steps):
        x = Step(q[last + t], k[last + t], v[last + t], state.on_device(places), K**-0.5)
        found.append(run(x))
        places += 1
    assert buffers == [x.data_ptr() for x in state.tensors()]
    held = AttentionState(state.keys, state.values, places.tolist(), window)
    for row, (_, b) in enumerate(whole.spans()):
        assert torch.equal(held.past(row)[0], k[b - held.held(row) : b])
        assert torch.equal(held.past(row)[1], v[b - held.held(row) : b])
    return torch.stack(found).double(), torch.stack([want[last + t] for t in range(steps)])


def by_triton(x):
    return importlib.import_module("interlace.ops.attention.triton").run(x)


SHAPES = {
    "groups": {},
    "one head": {"heads": (1, 1), "sizes": (8, 8)},
    "many of a group": {"heads": (20, 1), "sizes": (16, 4)},
    "no groups": {"heads": (3, 3), "sizes": (33, 17)},
}


@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_at_positions_on_the_device(window, shape):
    """Torch's own operations: ragged positions, a ring that turns, a first token, a buffer with space to spare."""
    found, want = decoded([1, 30, 6], window, masked, capacity=50, **SHAPES[shape])
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@triton_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_by_the_kernel(window, shape, dtype):
    found, want = decoded([1, 30, 6], window, by_triton, capacity=50, dtype=dtype, **SHAPES[shape])
    assert relative(found, want) < TOLERANCE[dtype]


@triton_only
@pytest.mark.parametrize(("lengths", "window"), [([61, 1, 15, 16], None), ([61, 20], 40)])
def test_stretches_are_joined(monkeypatch, lengths, window):
    """16 slots each, joined 2 at a time: sequences end at, before and after a border, and a ring's slot lies in one."""
    module = importlib.import_module("interlace.ops.attention.triton")
    monkeypatch.setattr(module, "SPAN", 16)
    monkeypatch.setattr(module, "MANY", 2)
    found, want = decoded(lengths, window, by_triton, dtype=torch.float32)
    assert relative(found, want) < TOLERANCE[torch.float32]


@triton_only
def test_a_sequence_is_summed_alike_in_every_batch_and_buffer(monkeypatch):
    module = importlib.import_module("interlace.ops.attention.triton")
    monkeypatch.setattr(module, "SPAN", 16)
    x = [torch.randn(41, n, 8) for n in (4, 2, 2)]
    found = []
    for rows, capacity in ((1, 41), (3, 41), (2, 200)):
        state = AttentionState.empty(rows, 2, 8, 8, None, x[1], capacity)
        many = [y[:40].repeat(rows, 1, 1) for y in x]
        state = state.append(many[1], many[2], Segments.equal(rows, 40))
        if capacity > 41:
            state._make_room(capacity)
        q, k, v = (y[40:].repeat(rows, 1, 1) for y in x)
        found.append(by_triton(Step(q, k, v, state.on_device(torch.full((rows,), 40)), 0.3))[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@triton_only
def test_what_was_never_written_is_never_read():
    state = AttentionState(*(torch.full((1, 40, 1, 8), float("nan")) for _ in range(2)), [0], None)
    x = torch.randn(3, 1, 1, 8)
    out = by_triton(Step(*x, state.on_device(torch.tensor([0])), 1.0))
    assert torch.allclose(out, x[2])


@triton_only
def test_the_probe_of_a_step_is_passed():
    values, gradients = measured(cases.probe(12, 20, 2), "triton", torch.float32, "cpu")
    assert values < TOLERANCE[torch.float32]
    assert gradients is None


FAULTS = {
    "the ring": ("(place % WINDOW)", "((place + 1) % WINDOW)"),
    "the slot that is written": ("& (first + tokens != slot)", ""),
    "the sums of stretches": ("total * shrunk + tl.sum(totals * weights, 0)", "total + tl.sum(totals * weights, 0)"),
    "an end": ("first + tokens < held", "first + tokens < held - 1"),
}


@triton_only
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_kernel_is_found(monkeypatch, tmp_path, fault):
    module = importlib.import_module("interlace.ops.attention.triton")
    right, wrong = FAULTS[fault]
    source = Path(module.triton_kernels.__file__).read_text(encoding="utf-8")
    assert right in source
    (tmp_path / "faulty.py").write_text(source.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("faulty", tmp_path / "faulty.py")
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    monkeypatch.setattr(module, "triton_kernels", faulty)
    monkeypatch.setattr(module, "SPAN", 16)
    monkeypatch.setattr(module, "MANY", 2)
    with pytest.raises(AssertionError):
        found, want = decoded([61, 20], 40, by_triton, dtype=torch.float32)
        assert relative(found, want) < TOLERANCE[torch.float32]


COMPILED = """
import torch, torch.nn.attention.varlen
from interlace.base.segments import Segments
from interlace.ops.attention import varlen

def kernel(q, k, v, a, b, most_q, most_k, *, scale, window_size, enable_gqa):
    row = torch.searchsorted(a[1:].contiguous(), torch.arange(q.shape[0], dtype=a.dtype), right=True)
    t = torch.arange(q.shape[0])
    seen = (row[:, None] == row) & (t <= t[:, None]) & ((t >= t[:, None] - window_size[0]) | (window_size[0] < 0))
    group = q.shape[1] // k.shape[1]
    scores = scale * torch.einsum("thk,shk->hts", q, k.repeat_interleave(group, 1))
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) * (1 + 0 * most_q)
    return torch.einsum("hts,shv->thv", weights, v.repeat_interleave(group, 1))

torch.nn.attention.varlen.varlen_attn = kernel
compiled = torch.compile(varlen.fresh, fullgraph=True, backend="aot_eager", dynamic=True)
for lengths in ([3, 1, 9], [30, 2], [9, 9, 3]):
    sizes = [(sum(lengths), *s) for s in ((4, 12), (2, 12), (2, 20))]
    x = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    both = []
    for run in (varlen.fresh, compiled):
        out = run(*x, Segments.from_lengths(lengths), 0.3, 4)
        both.append([out, *torch.autograd.grad(out.square().sum(), x)])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
"""


@pytest.mark.slow
def test_the_ragged_kernel_is_part_of_one_compiled_graph():
    """In a process of its own: the shape checks that the tests wrap around functions cannot be traced."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
