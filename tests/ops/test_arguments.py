"""Operators name the argument that is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from interlace import ops
from interlace.base.errors import BackendUnavailable, ConfigError, ShapeError
from interlace.base.segments import Segments
from interlace.ops import attention, gated_delta, selftest, short_convolution
from interlace.ops.core import fla
from interlace.ops.core.backends import ANY, Backend, announce, choose
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta.cases import gated_delta_case


@pytest.fixture
def x():
    return gated_delta_case([9], "plain", False).tensors


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
    with pytest.raises(BackendUnavailable, match=r"'native'.*not float64"):
        gated_delta(**x, backend="native")
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


@pytest.mark.parametrize("operator", ["gated_delta", "kimi_delta", "state_space"])
@pytest.mark.parametrize("shape", [(9, 0, 12), (9, 2, 0), (0, 2, 12)], ids=str)
def test_nothing_to_compute_is_named(operator, shape):
    """No heads, no channels or no tokens: a ShapeError, and no division by zero."""
    tokens, _, key_dim = shape
    run = getattr(ops, operator).__wrapped__
    query, value, gate = torch.zeros(shape), torch.zeros(tokens, 4, 20), torch.zeros(tokens, 4)
    decay = torch.zeros(tokens, 4, key_dim) if operator == "kimi_delta" else gate
    with pytest.raises(ShapeError):
        run(query, query, value, decay, gate)


def test_one_token_of_no_heads_is_named():
    query, value, gate = torch.zeros(1, 0, 12), torch.zeros(1, 4, 20), torch.zeros(1, 4)
    with pytest.raises(ShapeError, match="gated_delta_step: value has shape"):
        ops.gated_delta_step.__wrapped__(query, query, value, gate, gate, torch.zeros(1, 4, 12, 20))


def absent():
    raise BackendUnavailable("not built")


TABLE = (
    Backend("few", lambda: lambda *_: "few", ("cpu",), rows=2),
    Backend("absent", absent),
    Backend("slow", lambda: lambda *_: "slow", slow_on=(ANY,)),
)


def test_the_first_row_that_serves_is_taken(caplog):
    """Limits of rows are kept without a word; what is missing is announced, once."""
    announce.cache_clear()
    two, three = torch.zeros(2, 1), torch.zeros(3, 1)
    assert choose("op", TABLE, "auto", two)(two) == "few"
    assert not caplog.messages
    for _ in range(2):
        assert choose("op", TABLE, "auto", three)(three) == "slow"
    assert caplog.messages == ["backend 'absent' cannot serve op (not built); taking a slower one"]
    with pytest.raises(BackendUnavailable, match="'absent' cannot serve this call: not built"):
        choose("op", TABLE, "absent", two)
    assert choose("op", TABLE, "few", three)(three) == "few"


def test_a_fallback_is_announced_on_any_device(caplog):
    """Here one that no backend of ours knows but the last."""
    announce.cache_clear()
    elsewhere = SimpleNamespace(device=torch.device("cuda"), shape=(2, 1))
    assert choose("op", TABLE, "auto", elsewhere)(elsewhere) == "slow"
    assert caplog.messages[0].startswith("backend 'few' cannot serve op (it serves tensors on cpu, not on cuda)")


def test_a_backend_is_loaded_when_first_asked_for():
    asked = []
    lazy = Backend("lazy", lambda: asked.append(1) or (lambda *_: "lazy"))
    assert not asked
    for _ in range(2):
        assert choose("op", (lazy,), "auto", torch.zeros(1))() == "lazy"
    assert asked == [1]


def test_doctor_notices_a_wrong_backend(monkeypatch):
    """A backend that is off by a thousandth is found."""
    from interlace.ops.gated_delta import dispatch

    def slightly_wrong(x):
        out, state = dispatch._chunked(x)
        return out * 1.001, state

    wrong = tuple(Backend("chunked", lambda: slightly_wrong) if b.name == "chunked" else b for b in dispatch.BACKENDS)
    monkeypatch.setattr(dispatch, "BACKENDS", wrong)
    case = gated_delta_case([70], "x", True)
    assert selftest.errors(case, selftest.Variant("chunked"), torch.float32)[0] > selftest.TOLERANCE[torch.float32]


TWO_DEVICES = {
    "gated_delta": ("query", "value"),
    "kimi_delta": ("query", "beta"),
    "state_space": ("query", "log_decay"),
    "selective_scan": ("x", "A"),
    "short_convolution": ("x", "weight"),
    "experts": ("x", "second"),
    "attention": ("query", "key"),
}


@pytest.mark.parametrize("operator", TWO_DEVICES)
def test_tensors_on_two_devices_are_named(operator):
    first, other = TWO_DEVICES[operator]
    case = selftest.OPERATORS[operator].build([3, 4], "devices", False)
    tensors = {n: x.float().to("meta" if n == other else "cpu") for n, x in case.tensors.items()}
    with pytest.raises(ShapeError, match=f"{operator}: {other} lies on meta, but {first} on cpu; move them to one"):
        case.call("auto", tensors)


def test_fla_is_told_where_sequences_start():
    """flash-linear-attention runs on a GPU alone; a stand-in that follows its signature computes the rule here."""

    def chunk(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens, cu_seqlens_cpu
    ):
        assert output_final_state
        assert cu_seqlens.tolist() == cu_seqlens_cpu.tolist()
        segments = Segments.from_offsets(cu_seqlens.int())
        tensors = [x.squeeze(0) for x in (q, k, v, g, beta)]
        more = {"scale": scale, "normalise": use_qk_l2norm_in_kernel, "backend": "recurrent"}
        out, final = gated_delta(*tensors, segments=segments, state=initial_state, **more)
        return out.unsqueeze(0), final

    case = gated_delta_case([3, 70, 1], "fla", True)
    names = ("query", "key", "value", "log_decay", "beta")
    segments = Segments.from_lengths([3, 70, 1])
    x = Recurrence.of([case.tensors[n] for n in names], segments, case.tensors["state"], None, True)
    for found, due in zip(fla.run(chunk, x), case.call("recurrent", case.tensors), strict=True):
        torch.testing.assert_close(found, due.to(found.dtype), rtol=1e-5, atol=1e-5)


def test_fla_is_named_or_not_taken():
    x = gated_delta_case([3], "fla", False).tensors
    with pytest.raises(BackendUnavailable, match="backend 'fla' cannot serve this call: it serves tensors on cuda"):
        gated_delta(**{n: y.float() for n, y in x.items()}, backend="fla")
    row = fla.backend("fla.ops.nothing", "chunk")
    assert not row.wanted(x["query"])
    assert "pip install 'interlace[cuda]'" in row.loaded[1]
