"""Operators name the argument that is wrong."""

from __future__ import annotations

import pytest
import torch

from interlace.base.errors import BackendUnavailable, ConfigError, ShapeError
from interlace.base.segments import Segments
from interlace.ops import attention, gated_delta, selftest, short_convolution


@pytest.fixture
def x():
    return selftest.gated_delta_case([9], "plain", False).tensors


def test_log_decay_above_zero(x):
    with pytest.raises(ShapeError, match=r"log_decay must be at most 0.*0\.5"):
        gated_delta(**{**x, "log_decay": torch.full((9, 4), 0.5, dtype=torch.float64)})


@pytest.mark.parametrize(
    ("name", "shape"),
    [("key", (9, 2, 13)), ("value", (9, 3, 20)), ("value", (8, 4, 20)), ("log_decay", (9, 2)), ("beta", (8, 4))],
)
def test_gated_delta_shapes(x, name, shape):
    with pytest.raises(ShapeError, match=f"gated_delta: {name} has shape"):
        gated_delta.__wrapped__(**{**x, name: -torch.ones(shape, dtype=torch.float64)})


def test_gated_delta_state_and_segments(x):
    with pytest.raises(ShapeError, match="state has shape"):
        gated_delta.__wrapped__(**x, state=torch.zeros(1, 4, 20, 12, dtype=torch.float64))
    with pytest.raises(ShapeError, match="segments cover 8"):
        gated_delta(**x, segments=Segments.from_lengths([8]))


def test_backends_by_name(x):
    with pytest.raises(BackendUnavailable, match=r"'triton'.*not contain"):
        gated_delta(**x, backend="triton")
    with pytest.raises(ConfigError, match=r"'chunkd' is unknown; did you mean 'chunked'"):
        gated_delta(**x, backend="chunkd")


def test_other_operators():
    with pytest.raises(ShapeError, match="weight has shape"):
        short_convolution.__wrapped__(torch.zeros(5, 3), torch.zeros(4, 4))
    with pytest.raises(ShapeError, match="activation"):
        short_convolution(torch.zeros(5, 3), torch.zeros(3, 4), activation="relu")
    with pytest.raises(ShapeError, match="key has shape"):
        attention(torch.zeros(5, 4, 8), torch.zeros(5, 3, 8), torch.zeros(5, 3, 8))
    with pytest.raises(ShapeError, match="window"):
        attention(torch.zeros(5, 4, 8), torch.zeros(5, 4, 8), torch.zeros(5, 4, 8), window=0)


def test_segments_refuse_what_is_not_a_partition():
    with pytest.raises(ShapeError, match="at least 1"):
        Segments.from_lengths([3, 0])
    with pytest.raises(ShapeError, match="rise from 0"):
        Segments.from_offsets(torch.tensor([0, 4, 4]))
    assert Segments.from_offsets(torch.tensor([0, 4, 9])).lengths == [4, 5]


def test_no_decay_at_minus_infinity_forgets_everything(x):
    """A log_decay of -inf is a legal 'forget all', in values and gradients."""
    decay = x["log_decay"].clone()
    decay[4] = -torch.inf
    x = {**x, "log_decay": decay}
    out, state = gated_delta(**x)
    want, last = gated_delta(**{n: y[4:] for n, y in x.items()})
    torch.testing.assert_close(out[4:], want)
    torch.testing.assert_close(state, last)


def test_doctor_notices_a_wrong_backend(monkeypatch):
    """A backend that is off by a thousandth is found."""
    from interlace.ops.gated_delta import dispatch

    def slightly_wrong(*args):
        out, state = dispatch._run_chunked(*args)
        return out * 1.001, state

    wrong = tuple(dispatch.Backend("chunked", slightly_wrong) if b.name == "chunked" else b for b in dispatch.BACKENDS)
    monkeypatch.setattr(dispatch, "BACKENDS", wrong)
    case = selftest.gated_delta_case([70], "x", True)
    assert selftest.errors(case, selftest.Variant("chunked"), torch.float32)[0] > selftest.TOLERANCE[torch.float32]
