"""How many threads a step takes beside other processes."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from interlace.ops.core import kernels, threads
from interlace.ops.linear.dispatch import linear

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A machine's counters: what its processors did, and what of that was ours."""

    def __init__(self, path, monkeypatch, processors):
        self.path, self.processors, self.now, self.busy, self.own = path, processors, 100.0, 0.0, 5.0
        monkeypatch.setattr(threads, "_processors", lambda: set(range(processors)))
        monkeypatch.setattr(resource, "getrusage", lambda _: self)
        self.pass_time(0, 0, 0)
        self.free = threads.Free(str(path), lambda: self.now)

    ru_stime = 0.0

    @property
    def ru_utime(self):
        return self.own

    def pass_time(self, seconds, others, ours):
        """Others and we work so many seconds of each second, of all processors; a further one is somebody else's."""
        self.now += seconds
        self.busy += (others + ours) * seconds
        self.own += ours * seconds
        each = int(self.busy * TICKS / self.processors)
        lines = ["cpu  9999999 0 0 0 0 0 0 0 0 0"]
        lines += [f"cpu{i} {each - 7} 3 2 123456 99 1 1 0 0 0" for i in range(self.processors)]
        self.path.write_text("\n".join([*lines, "cpu17 999999 0 0 0 0 0 0 0 0 0", "intr 1 2", "ctxt 5"]) + "\n")


@pytest.mark.parametrize(
    ("processors", "others", "ours", "want"),
    [(2, 0.0, 2.0, 2), (2, 0.3, 1.6, 2), (2, 1.0, 1.0, 1), (2, 2.0, 0.0, 1), (2, 1.3, 0.7, 1), (8, 3.1, 4.0, 5)],
)
def test_as_many_as_others_leave_free(tmp_path, monkeypatch, processors, others, ours, want):
    machine = Machine(tmp_path / "stat", monkeypatch, processors)
    assert machine.free() == processors  # nothing is known yet
    machine.pass_time(0.1, processors, 0)
    assert machine.free() == processors  # too soon to look again
    machine.pass_time(2, others, ours)
    machine.free()
    machine.pass_time(2, others, ours)
    assert machine.free() == want
    machine.pass_time(2, 0, ours)
    assert machine.free() == processors


@pytest.mark.parametrize("text", ["", "cpu0 a b c d e f g h\n", "cpu0 1 2\n"])
def test_without_counters_all_are_taken(tmp_path, monkeypatch, text):
    monkeypatch.setattr(threads, "_processors", lambda: {0, 1, 2})
    (tmp_path / "stat").write_text(text)
    for path in (tmp_path / "stat", tmp_path / "none"):
        now = [0.0]
        free = threads.Free(str(path), lambda now=now: now[0])
        for _ in range(3):
            now[0] += 1
            assert free() == 3


@pytest.mark.skipif(not kernels.available(), reason="there are no kernels")
def test_kernels_take_no_more_and_give_the_same_bits():
    x, weight = torch.randn(3, 200), torch.randn(500, 200)
    with torch.no_grad():
        want = linear(x, weight, backend="native")
        for most in (1, 2, 64):
            with kernels.at_most(most):
                assert kernels.module().most_threads() == most
                assert torch.equal(linear(x, weight, backend="native"), want)
    assert kernels.module().most_threads() > 1000
