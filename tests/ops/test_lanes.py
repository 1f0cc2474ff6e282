"""The chunked form as a GPU takes it: all heads and sequences at once, ragged too, few launches, no wait."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.base.segments import Segments
from interlace.ops.core import chunks, lanes, tables
from interlace.ops.core.cases import LENGTHS, TOLERANCE, measured, recurrence_case
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta.chunked import GatedDeltaGrid
from interlace.ops.kimi_delta.chunked import KimiDeltaGrid
from interlace.ops.state_space.chunked import StateSpaceGrid

GRIDS = {"gated_delta": GatedDeltaGrid, "kimi_delta": KimiDeltaGrid, "state_space": StateSpaceGrid}
RULES = list(GRIDS)


@pytest.fixture(autouse=True)
def _by_rank(monkeypatch):
    monkeypatch.setattr(lanes, "ranks_on", lambda _: True)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS["ragged"], [1, 128, 2]], ids=str)
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


def launches(rule, lengths, shape=(2, 4, 12, 20), segments=None):
    """Return how many operations forward and backward launch, and what looked at the host's side."""
    case = recurrence_case(rule, lengths, "", True, shape=shape)
    names = ("query", "key", "value", "log_decay", "step" if rule == "state_space" else "beta")
    state = case.tensors["state"].float()
    segments = segments or Segments.from_lengths(lengths)
    x = Recurrence.of([case.tensors[n].float() for n in names], segments, state, 1.0)
    grid = GRIDS[rule]
    chunks.forward(grid, x)  # the tables are made, once for a batch
    with Launches() as forward:
        out, final = chunks.forward(grid, x)
    with Launches() as backward:
        chunks.backward(grid, out, final, x)
    return forward.count, backward.count - forward.count, forward.looks + backward.looks


@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_the_scan_takes_few_launches_whatever_the_heads_and_sequences(rule):
    """Steps cost equally; what surrounds the scan is the difference. Backward's own count, its forward left out."""
    counts = {n: launches(rule, [64 * n, 64 * n - 7]) for n in (2, 3, 8)}
    forward, backward = ((counts[8][i] - counts[3][i]) / 5 for i in (0, 1))
    assert counts[3][0] - counts[2][0] == forward
    assert 3 <= forward <= 8
    assert 3 <= backward <= 8
    many = launches(rule, [64 * 3, 64 * 3 - 7, 150, 150, 150, 129], (4, 16, 12, 20))
    assert many[:2] == counts[3][:2]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("equal", [False, True])
def test_nothing_waits_for_the_device(rule, equal):
    assert launches(rule, [130, 130] if equal else [130, 70, 1])[2] == []


def test_chunks_are_ordered_by_step_and_length():
    segments = Segments.from_lengths([3, 70, 64, 130])
    ranks = tables.ranks(segments.offsets, torch.device("cpu"), 64)
    assert ranks.order.tolist() == [3, 1, 2, 0]
    assert ranks.steps == [(0, 4), (4, 6), (6, 7)]
    assert ranks.there.sum(1).tolist() == [64, 64, 64, 3, 64, 6, 2]
    assert ranks.token.flatten()[ranks.place].tolist() == list(range(segments.total))
    assert tables.ranks(segments.offsets, torch.device("cpu"), 64) is ranks
