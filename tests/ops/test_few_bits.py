"""Weights of 8 and 4 bits: their products against the float64 product of what they stand for."""

from __future__ import annotations

import pytest
import torch

from interlace.base.errors import ConfigError
from interlace.ops.core import kernels
from interlace.ops.core.quantised import Rounding, quantise
from interlace.ops.experts.dispatch import experts
from interlace.ops.linear.dispatch import linear

ROUNDINGS = [Rounding(bits, group) for bits in (8, 4) for group in (64, 32)]
SHAPES = [(71, 83), (64, 64), (1, 1), (200, 512), (16, 33), (17, 31)]
sets = pytest.mark.parametrize("instructions", kernels.instruction_sets())
named = pytest.mark.parametrize("rounding", ROUNDINGS, ids=str)


def nasty(rows, width, dtype=torch.float32):
    """Rows of all sizes: large, tiny, zero, and one outlier among small inputs."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    x[1 % rows] *= 1e4
    x[2 % rows] *= 1e-12
    x[3 % rows] = 0
    x[4 % rows, width // 2] = 1e3
    return x.to(dtype)


@named
@pytest.mark.parametrize(("outputs", "width"), SHAPES)
def test_a_weight_is_within_half_a_step(outputs, width, rounding):
    weight = torch.randn(outputs, width)
    weight[0, 0], weight[-1] = 40.0, 0.25
    found = quantise(weight, rounding).weight(torch.float32)
    assert found.shape == weight.shape
    for first in range(0, width, rounding.group):
        part, near = weight[:, first : first + rounding.group], found[:, first : first + rounding.group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)  # inputs past the last are zeros
        step = torch.maximum(-low, high) / 127 if rounding.bits == 8 else (high - low) / 15
        error = (near - part).abs().amax(1)
        # the best line through a group's steps may leave one input further off; scales have 8 bits
        assert bool((error <= step * (0.51 if rounding.bits == 8 else 1.6) + 0.004 * high.maximum(-low)).all())


@named
def test_a_weight_that_has_few_values_is_kept(rounding):
    steps = torch.arange(16).repeat(4).float()[: rounding.group]
    weight = (steps - 8)[torch.randperm(len(steps))].repeat(16, 3) / 8
    assert torch.allclose(quantise(weight, rounding).weight(torch.float32), weight, atol=1 / 127)
    assert quantise(torch.zeros(5, 70), rounding).weight(torch.float32).count_nonzero() == 0


@sets
@named
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_weight_it_stands_for(instructions, rounding, dtype):
    bound = 1e-4 if dtype == torch.float32 else 5e-3  # inputs become 16-bit steps; the result is of the dtype
    with kernels.using(instructions), torch.no_grad():
        for outputs, width in SHAPES:
            few = quantise(torch.randn(outputs, width) / width**0.5, rounding)
            x, residual = nasty(13, width, dtype), torch.randn(13, outputs).to(dtype)
            found = linear(x, few, backend="native")
            want = x.double() @ few.weight(torch.float64).T
            size = want.norm(dim=1).clamp(min=1e-20)
            assert bool(((found - want).norm(dim=1) / size < bound).all()), (outputs, width)
            assert bool((found[3] == 0).all())
            more = linear(x, few, residual, backend="native").double()
            wide = want + residual.double()
            assert bool(((more - wide).norm(dim=1) / wide.norm(dim=1) < bound).all())


@sets
@named
def test_what_is_not_finite_is_nan_in_its_row_alone(instructions, rounding):
    few, x = quantise(torch.randn(40, 100), rounding), torch.randn(5, 100)
    x[1, 70], x[3, 2] = float("nan"), float("-inf")
    with kernels.using(instructions), torch.no_grad():
        found = linear(x, few, backend="native")
    assert found.isnan().all(1).tolist() == [False, True, False, True, False]
    assert found.isfinite().all(1).tolist() == [True, False, True, False, True]


@sets
@named
def test_a_row_is_the_same_to_the_bit_in_any_batch(instructions, rounding):
    few, x = quantise(torch.randn(71, 83), rounding), nasty(150, 83)
    with kernels.using(instructions), torch.no_grad():
        whole = linear(x, few, backend="native")
        for first, last in [(0, 1), (0, 2), (3, 6), (5, 9), (11, 16), (60, 67), (1, 33), (63, 140)]:
            assert torch.equal(linear(x[first:last].contiguous(), few, backend="native"), whole[first:last])


@sets
@named
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_experts_of_few_bits(instructions, rounding, activation):
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(5, 74 if activation == "swiglu" else 37, 50, generator=draw) / 7
    second = torch.randn(5, 50, 37, generator=draw) / 6
    few = [quantise(w, rounding) for w in (first, second)]
    wide = [w.weight(torch.float32) for w in few]
    with kernels.using(instructions), torch.no_grad():
        for rows in (1, 9, 100):  # the last by torch's products
            x, weights = nasty(rows, 50), torch.rand(rows, 3)
            chosen = torch.rand(rows, 5).topk(3).indices
            found = experts(x, chosen, weights, *few, activation=activation)
            want = experts(x, chosen, weights, *wide, activation=activation, backend="plain")
            assert bool(((found - want).norm(dim=1) <= 2e-4 * want.norm(dim=1) + 1e-20).all())


def test_other_bits_and_groups_are_refused():
    with pytest.raises(ConfigError, match="bits: must be 8 or 4, got 5"):
        quantise(torch.zeros(2, 2), Rounding(5))
    with pytest.raises(ConfigError, match="group: must be 64 or 32, got 48"):
        quantise(torch.zeros(2, 2), Rounding(4, 48))
