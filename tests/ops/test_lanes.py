"""The chunked form as a GPU takes it: all heads and sequences at once, ragged too, few launches, no look at the host."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.base.segments import Segments
from interlace.ops.core import lanes, tables
from interlace.ops.core.cases import LENGTHS, TOLERANCE, measured, recurrence_case

RULES = ["gated_delta", "kimi_delta", "state_space"]


@pytest.fixture(autouse=True)
def _by_rank(monkeypatch):
    monkeypatch.setattr(lanes, "ranks_on", lambda _: True)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS["ragged"], [1, 2], [64, 128, 63]], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_ranked_chunks_equal_the_recurrence(rule, lengths, state):
    case = recurrence_case(rule, lengths, "", state)
    for dtype in (torch.float64, torch.float32):
        values, gradients = measured(case, "chunked", dtype, "cpu")
        assert max(values, gradients) <= TOLERANCE[dtype]


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would launch, and those that look at the host's side."""

    LOOKS = ("_local_scalar_dense", "nonzero", "item")

    def __init__(self):
        super().__init__()
        self.count, self.looks = 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        aliases = any(
            result.alias_info is not None and not result.alias_info.is_write for result in operation._schema.returns
        )
        if not aliases and "empty" not in operation._schema.name:
            self.count += 1
        if any(name in operation._schema.name for name in self.LOOKS):
            self.looks.append(operation._schema.name)
        return found


def launches(rule, lengths, shape=(2, 4, 12, 20), back=True):
    case = recurrence_case(rule, lengths, "", True, shape=shape)
    inputs = {n: x.float().requires_grad_(back) for n, x in case.tensors.items()}
    case.call("chunked", inputs)  # the tables are made, once for a batch
    with Launches() as counted:
        out, final = case.call("chunked", inputs)
        forward = counted.count
        if back:
            (out.sum() + final.sum()).backward()
    return forward, counted.count - forward, counted.looks


@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_the_scan_takes_few_launches_whatever_the_heads_and_sequences(rule):
    """Equal steps cost equally; the first step, and what surrounds the scan, are the difference."""
    counts = {n: launches(rule, [64 * n, 64 * n - 7]) for n in (2, 3, 8)}
    forward, backward = ((counts[8][i] - counts[3][i]) / 5 for i in (0, 1))
    assert counts[3][0] - counts[2][0] == forward
    assert forward <= 8
    assert backward <= 14
    many = launches(rule, [64 * 3, 64 * 3 - 7, 150, 150, 150, 129], (4, 16, 12, 20))
    assert many[0] - counts[3][0] <= 3
    assert many[1] - counts[3][1] <= 3


@pytest.mark.parametrize("rule", RULES)
def test_nothing_waits_for_the_device(rule):
    looks = launches(rule, [130, 70, 1])[2]
    assert [name for name in looks if "nonzero" in name] == []
    assert len(looks) <= 2, "only the check of log_decay, of the public function"


def test_chunks_are_ordered_by_step_and_length():
    segments = Segments.from_lengths([3, 70, 64, 130])
    ranks = tables.ranks(segments.offsets, torch.device("cpu"), 64)
    assert ranks.order.tolist() == [3, 1, 2, 0]
    assert ranks.steps == [(0, 4), (4, 6), (6, 7)]
    assert ranks.there.sum(1).tolist() == [64, 64, 64, 3, 64, 6, 2]
    assert ranks.token.flatten()[ranks.place].tolist() == list(range(segments.total))
    assert tables.ranks(segments.offsets, torch.device("cpu"), 64) is ranks
