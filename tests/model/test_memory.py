"""The dry run that predicts a prompt's memory, against the bytes that the same pass allocates."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.model.memory import Alive, prefill_memory
from interlace.model.model import HybridLM
from interlace.model.presets import PRESETS, preset
from interlace.model.sizes import sizes


@pytest.mark.parametrize("name", list(PRESETS))
def test_weights_and_state_are_those_of_the_sizes(name):
    config = preset(name)
    memory, size = prefill_memory(config, 200, 64), sizes(config, (200,), element_bytes=2)
    assert memory.state == size.state_bytes[200] + size.cache_bytes[200]
    weights = HybridLM(config, dtype=torch.bfloat16)
    assert memory.weights == sum(p.nbytes for p in weights.parameters())
    assert memory.total == memory.weights + memory.state + memory.working + memory.kept


def test_what_works_grows_with_the_part_and_hardly_with_the_prompt():
    config = preset("tiny-hybrid")
    short, long, wide = (prefill_memory(config, n, part).working for n, part in ((512, 64), (4096, 64), (512, 256)))
    assert long < 1.5 * short
    assert 3 * short < wide < 5 * short


def test_it_counts_what_lives_at_once():
    with Alive([]) as alive:
        a = torch.empty(1000, device="meta")
        b = a + 1
        del a
        c = b.view(10, 100) * 2
        del b, c
    assert alive.peak == 8000
    assert alive.bytes == 0
    assert isinstance(alive, TorchDispatchMode)


def test_what_is_there_before_is_not_counted():
    a = torch.empty(1000, device="meta")
    with Alive([a]) as alive:
        a[:10].add_(1)
        b = a.view(10, 100)
    assert alive.peak == 0
    assert b.shape == (10, 100)
