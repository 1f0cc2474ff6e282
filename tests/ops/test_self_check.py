"""A kernel is compared with the recurrence before its first answer; a wrong one never gets to answer."""

from __future__ import annotations

import importlib
import json
import logging

import pytest
import torch

from interlace.base.errors import BackendUnavailable, Failure
from interlace.base.segments import Segments
from interlace.ops import short_convolution
from interlace.ops.core import backends, gpu, self_check
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta.cases import gated_delta_case
from interlace.ops.gated_delta.dispatch import run as by_operands
from interlace.ops.kimi_delta.dispatch import run as by_kimi
from interlace.ops.short_convolution import triton, triton_kernels
from interlace.ops.short_convolution.operands import Convolution

dispatch = importlib.import_module("interlace.ops.short_convolution.dispatch")
pytestmark = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """Checks kernels on the CPU as on a GPU; returns the number of launches so far."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu, "CHECKED", ("cpu",))
    monkeypatch.setattr(self_check, "_verdicts", {})
    launches = []
    launch = gpu.launch
    monkeypatch.setattr(gpu, "launch", lambda kernel, *rest: (launches.append(kernel), launch(kernel, *rest)))
    return launches


def given():
    return torch.randn(5, 8), torch.randn(8, 4)


def test_a_good_kernel_is_checked_once_and_the_verdict_is_kept(checked):
    short_convolution(*given(), backend="triton")
    first = len(checked)
    assert first > 2, "the check itself takes forward and backward"
    short_convolution(*given(), backend="triton")
    assert len(checked) == first + 1
    verdicts = json.loads(self_check.file().read_text())
    assert list(verdicts.values()) == ["good"]
    assert "short_convolution (4,) float32 on cpu, Triton" in next(iter(verdicts))
    self_check._verdicts.clear()  # another process
    short_convolution(*given(), backend="triton")
    assert len(checked) == first + 2


def test_a_wrong_kernel_is_named_and_passed_over(checked, monkeypatch, caplog):
    launch = triton._launch

    def forgets_silu(kernel, c, *rest, **more):
        launch(kernel, c._replace(activated=False), *rest, **more)

    monkeypatch.setattr(triton, "_launch", forgets_silu)
    with pytest.raises(BackendUnavailable, match=r"its self-check on this GPU failed: values are off by \d"):
        short_convolution(*given(), backend="triton")
    backends.announce.cache_clear()
    rows = [row for row in dispatch.BACKENDS if row.name in ("triton", "chunked")]
    monkeypatch.setattr(dispatch, "BACKENDS", rows)
    monkeypatch.setattr(backends.Backend, "wanted", lambda *_: True)  # "auto" would not take it on a CPU
    x, weight = given()
    with caplog.at_level(logging.WARNING):
        out, _ = short_convolution(x, weight)
        short_convolution(x, weight)
    assert torch.allclose(out, short_convolution(x, weight, backend="chunked")[0])
    assert "backend 'triton' cannot serve short_convolution (its self-check on this GPU failed" in caplog.text
    assert len(caplog.records) == 1


def test_a_kernel_that_does_not_compile_is_a_reason(checked, monkeypatch):
    def broken(*_):
        raise RuntimeError("ptxas died\nof something")

    monkeypatch.setattr(gpu, "launch", broken)
    with pytest.raises(BackendUnavailable, match="on this GPU it does not run: RuntimeError: ptxas died;"):
        short_convolution(*given(), backend="triton")


def test_one_token_has_a_check_of_its_own(checked, monkeypatch):
    monkeypatch.setattr(self_check, "_examine", lambda probe, device: self_check.GOOD)
    given = [torch.randn(2, 1, n) for n in (16, 16, 20)] + [-torch.rand(2, 1, 16), torch.rand(2, 1)]
    for state in (torch.randn(2, 1, 16, 20), None):
        by_kimi(Recurrence.of(tuple(given), Segments.equal(2, 1), state, None, True), "triton")
    assert [name.split(" (")[0] for name in self_check._verdicts] == ["kimi_delta step", "kimi_delta"]


def test_a_second_thread_does_not_take_what_is_being_checked(checked, monkeypatch):
    short_convolution(*given(), backend="triton")
    (key,) = self_check._verdicts
    monkeypatch.setattr(self_check, "_running", {key: -1})
    with pytest.raises(BackendUnavailable, match="another thread is checking it"):
        short_convolution(*given(), backend="triton")


def test_a_kernel_that_breaks_the_gpu_ends_the_command_once(monkeypatch):
    def lost(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    probe = self_check.Probe("swiglu", torch.float32, (8,), lambda: None)
    with pytest.raises(Failure, match="swiglu: its kernel broke .* start again: the kernel will be passed over"):
        self_check._check_usable(probe, torch.device("cuda"), "it does not run")
    self_check._check_usable(probe, torch.device("cuda"), self_check.GOOD)


def test_the_check_can_be_left_out(checked, monkeypatch):
    monkeypatch.setenv("INTERLACE_SELF_CHECK", "off")
    short_convolution(*given(), backend="triton")
    assert checked == [triton_kernels.forward]
    assert not self_check.file().exists()


def test_a_spoilt_file_of_verdicts_is_replaced(checked):
    self_check.file().parent.mkdir(parents=True)
    self_check.file().write_text("[1,")
    short_convolution(*given(), backend="triton")
    assert "good" in self_check.file().read_text()


def compiled(x, weight):
    """The public function, without the checks of shapes that tests put around it: a compiler cannot read these."""
    offsets = Segments.from_lengths([x.shape[0]]).offsets

    def run(x):
        c = Convolution(x, weight, offsets, None, True, False, 0)
        return backends.choose("short_convolution", dispatch.BACKENDS, "triton", c)(c)[0]

    torch._dynamo.reset()
    return torch.compile(run, fullgraph=True, backend="eager")(x)


def test_the_check_is_made_before_a_graph_is_compiled(checked):
    x, weight = given()
    torch.testing.assert_close(compiled(x, weight), short_convolution(x, weight, backend="chunked")[0])
    assert list(self_check._verdicts.values()) == ["good"]


def test_a_wrong_kernel_is_compiled_into_no_graph(checked, monkeypatch):
    launch = triton._launch

    def forgets_silu(kernel, c, *rest, **more):
        launch(kernel, c._replace(activated=False), *rest, **more)

    monkeypatch.setattr(triton, "_launch", forgets_silu)
    with pytest.raises(Exception, match="its self-check on this GPU failed"):
        compiled(*given())


def test_a_rule_compiles_into_one_graph_with_gradients():
    case = gated_delta_case([5, 9], "compiled", True)
    names = ("query", "key", "value", "log_decay", "beta", "state")
    inputs = [case.tensors[n].float().requires_grad_() for n in names]
    segments = Segments.from_lengths([5, 9])

    def run(*x):
        return by_operands(Recurrence.of(x[:5], segments, x[5], None, True), "triton")

    torch._dynamo.reset()
    due, found = run(*inputs), torch.compile(run, fullgraph=True, backend="eager")(*inputs)
    for a, b in zip(found, due, strict=True):
        torch.testing.assert_close(a, b)
    torch.autograd.grad(found[0].sum() + found[1].sum(), inputs)
