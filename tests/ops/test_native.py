"""The compiled kernels: what selects them, shapes drawn at random, hostile tensors, and results that never vary."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interlace.ops as ops
from interlace.base.errors import BackendUnavailable, ShapeError
from interlace.base.segments import Segments
from interlace.ops import (
    attention,
    cross_entropy_,
    decay_gate,
    experts,
    gated_delta,
    gated_delta_step,
    linear,
    rms_norm,
    rope,
    selftest,
    short_convolution,
    swiglu,
)
from interlace.ops.attention.cases import attention_case
from interlace.ops.core import kernels as native
from interlace.ops.core.cases import given_dtype, outputs_and_gradients, recurrence_case
from interlace.ops.core.quantised import Rounding, quantise
from interlace.ops.gated_delta import native as gated_delta_native
from interlace.ops.gated_delta.cases import gated_delta_case
from interlace.ops.short_convolution.cases import short_convolution_case
from interlace.ops.short_convolution.dispatch import _columns, side_by_side

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native kernels here: {native.missing}")
COMPILED = [name for name in selftest.OPERATORS if any(v.backend == "native" for v in selftest.variants(name))]
every_instruction_set = pytest.mark.parametrize("instruction_set", native.instruction_sets())
NATIVE = selftest.Variant("native", native.active())


def in_a_process(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


# What selects them


@pytest.mark.slow
@every_instruction_set
def test_the_environment_forces_an_instruction_set(instruction_set):
    done = in_a_process(
        "from interlace.ops.core import kernels; print(kernels.active())", INTERLACE_NATIVE=instruction_set
    )
    assert done.stdout.strip() == instruction_set, done.stderr


def test_an_unknown_instruction_set_is_named():
    done = in_a_process("from interlace.ops.core import kernels", INTERLACE_NATIVE="avx1024")
    assert "INTERLACE_NATIVE: 'avx1024' is not an instruction set of this processor and build" in done.stderr
    assert "portable" in done.stderr or "did you mean" in done.stderr


def test_without_kernels_everything_works_and_says_so_once():
    code = """
import logging, torch
logging.basicConfig()
from interlace import HybridLM, generate
from interlace.generation.text import generate_tokens
from interlace.generation.pack import pack_for_decoding
from interlace.model.presets import preset
from interlace.ops.core import kernels as native
assert not native.available() and native.active() == "none"
model = HybridLM(preset("tiny-hybrid"))
model(torch.arange(20))[0].sum().backward()
print(len(list(generate_tokens(pack_for_decoding(model), [1, 2], max_tokens=5))))
"""
    done = in_a_process(code, INTERLACE_NATIVE="off")
    assert done.stdout.strip() == "5", done.stderr
    assert done.stderr.count("backend 'native' cannot serve gated_delta (INTERLACE_NATIVE=off)") == 1


@pytest.mark.slow
def test_doctor_says_what_is_missing_and_what_it_costs():
    code = "from interlace.ops import selftest; selftest.LENGTHS = {'short': [3]}\n"
    code += "from interlace.cli.main import run; run(['doctor'])"
    done = in_a_process(code, INTERLACE_NATIVE="off")
    text = " ".join(done.stdout.split())
    assert "native kernels none: INTERLACE_NATIVE=off" in text, done.stderr
    assert "training takes about twice" in text


def test_they_run_on_torchs_threads():
    """Two pools of threads would wait for each other's to fall asleep."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert native.shares_torch_threads()
    finally:
        torch.set_num_threads(before)


def test_constants_agree_with_the_kernels():
    assert native.module().SNAPSHOT_TOKENS == gated_delta_native.SNAPSHOT_TOKENS


@every_instruction_set
def test_the_same_bits_for_any_number_of_threads(instruction_set):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = []
            with native.using(instruction_set):
                for operator in COMPILED:
                    case = selftest.OPERATORS[operator].build([70, 1, 300], "threads", True)
                    values, gradients = outputs_and_gradients(case, "native", torch.bfloat16, torch.bfloat16, "cpu")
                    found += [*values, *gradients]
            results.append(found)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Shapes drawn at random, against the float64 truth

DRAWN = settings(max_examples=25, deadline=None, derandomize=True)
lengths = st.lists(st.integers(1, 90), min_size=1, max_size=4)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
sizes = st.integers(1, 70)


def holds(case, dtype):
    for name in native.instruction_sets():
        values, gradients = selftest.errors(case, selftest.Variant("native", name), dtype)
        assert values <= selftest.TOLERANCE[dtype], name
        assert gradients is None or gradients <= selftest.TOLERANCE[dtype], name


@pytest.mark.slow
@DRAWN
@given(lengths, st.integers(1, 3), st.integers(1, 3), sizes, sizes, st.booleans(), dtypes, st.integers(0, 99))
def test_recurrences_of_any_shape(lengths, H, group, K, V, with_state, dtype, seed):
    for rule in ("gated_delta", "kimi_delta", "state_space"):
        holds(recurrence_case(rule, lengths, "drawn", with_state, seed, (H, H * group, K, V)), dtype)


@DRAWN
@given(lengths, sizes, st.integers(1, 9), st.booleans(), dtypes, st.integers(0, 99))
def test_short_convolution_of_any_shape(lengths, D, W, with_state, dtype, seed):
    holds(short_convolution_case(lengths, "drawn", with_state, seed, (D, W)), dtype)


@DRAWN
@given(lengths, st.integers(1, 3), st.integers(1, 3), sizes, sizes, st.none() | st.integers(1, 80), dtypes)
def test_attention_of_any_shape(lengths, J, group, K, V, window, dtype):
    holds(attention_case([n * 2 for n in lengths], "drawn", window, 0, (J * group, J, K, V)), dtype)


@pytest.mark.slow
def test_long_segments_start_backward_from_snapshots():
    """Several snapshots in one segment, none in its neighbours, borders that are no multiples of anything."""
    for dtype in (torch.float32, torch.bfloat16):
        holds(gated_delta_case([7, 1030, 255, 256, 257], "snapshots", True), dtype)


@pytest.mark.slow
def test_heads_far_larger_than_the_caches():
    holds(gated_delta_case([40, 33], "huge", True, 0, (1, 1, 600, 900)), torch.float32)
    holds(attention_case([130], "huge", None, 0, (1, 1, 700, 500)), torch.float32)


def test_only_the_final_state_is_differentiated():
    x = {n: t.float().requires_grad_() for n, t in gated_delta_case([300, 5], "final", True).tensors.items()}
    segments = Segments.from_lengths([300, 5])
    found, want = (
        torch.autograd.grad(gated_delta(**x, segments=segments, normalise=True, backend=b)[1].sum(), list(x.values()))
        for b in ("native", "chunked")
    )
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# Hostile tensors


def strided(x):
    """The same values, rows apart and columns in another order in memory."""
    return x.repeat_interleave(2, dim=0)[::2].transpose(-1, -2).contiguous().transpose(-1, -2)


def misaligned(x):
    """The same values, one element off every boundary."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


def of_wider_rows(x):
    """The same values as a slice of wider rows."""
    return torch.cat((x, x, x), dim=-1)[..., x.shape[-1] : 2 * x.shape[-1]]


@pytest.mark.parametrize("laid", [strided, misaligned, of_wider_rows])
@pytest.mark.parametrize("operator", [n for n in COMPILED if n not in ("cross_entropy_", "linear")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_layout_in_memory(operator, laid, dtype):
    case = selftest.OPERATORS[operator].build([33, 2], "layout", True)
    plain = {n: x.to(given_dtype(operator, n, dtype)) for n, x in case.tensors.items()}
    with torch.no_grad():
        want = case.call("native", plain)
        found = case.call("native", {n: laid(x) if x.ndim > 1 else misaligned(x) for n, x in plain.items()})
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a, b)


def test_what_must_lie_in_one_piece_says_so():
    with pytest.raises(BackendUnavailable, match="logits are not contiguous"):
        cross_entropy_(torch.zeros(4, 3).T, torch.tensor([0, 1, 2]), backend="native")
    with torch.no_grad(), pytest.raises(BackendUnavailable, match="weight is not contiguous"):
        linear(torch.zeros(1, 3), torch.zeros(3, 5).T, backend="native")
    weight = torch.randn(5, 3)
    with torch.no_grad():
        torch.testing.assert_close(linear(torch.ones(1, 3), strided(weight)), weight.sum(1)[None])


def test_expanded_tensors_are_read_and_never_written():
    x = gated_delta_case([20], "expanded", False).tensors
    one = {n: t[:1].float() for n, t in x.items()}
    spread = {n: t.expand(20, *t.shape[1:]).requires_grad_() for n, t in one.items()}
    copied = {n: t.repeat(20, *[1] * (t.ndim - 1)).requires_grad_() for n, t in one.items()}
    results = []
    for given_ in (spread, copied):
        out, _ = gated_delta(**given_, backend="native")
        results.append([out, *torch.autograd.grad(out.square().sum(), list(given_.values()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    step = {n: t[:2].float() for n, t in x.items()}
    with pytest.raises(ShapeError, match="state is not contiguous"):
        gated_delta_step(**step, state=torch.zeros(1, 4, 12, 20).expand(2, 4, 12, 20))


def test_a_state_that_is_given_is_not_changed():
    case = gated_delta_case([1, 1], "given", True)
    x = {n: t.float() for n, t in case.tensors.items()}
    before = x["state"].clone()
    with torch.no_grad():
        gated_delta(**x, segments=Segments.equal(2, 1), backend="native")
    assert torch.equal(x["state"], before)
    out = gated_delta_step(**x)
    want, after = gated_delta(**{**x, "state": before}, segments=Segments.equal(2, 1), backend="chunked")
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x["state"], after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_refused_by_name_and_served_by_auto(dtype):
    x = {n: t.to(dtype) for n, t in gated_delta_case([5], "dtype", False).tensors.items()}
    with pytest.raises(BackendUnavailable, match=str(dtype).removeprefix("torch.")):
        gated_delta(**x, backend="native")
    assert gated_delta(**x)[0].dtype == dtype


@every_instruction_set
@pytest.mark.parametrize("rule", ["gated_delta", "kimi_delta", "state_space"])
@pytest.mark.parametrize("name", ["query", "key", "value", "log_decay", "strength", "state"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_is_not_finite_spreads_as_in_the_recurrence(rule, name, bad, instruction_set):
    """Not to tokens before it, not to other sequences; and what is finite has the recurrence's value."""
    if name == "log_decay" and bad == float("inf"):
        pytest.skip("refused: the state would grow")
    if name == "strength":
        name = "step" if rule == "state_space" else "beta"
    lengths, operator = [40, 70, 20], getattr(ops, rule)
    x = {n: t.float() for n, t in recurrence_case(rule, lengths, "bad", True).tensors.items()}
    x[name] = x[name].clone()
    place = (1, 0, 3, 5) if name == "state" else (75, *[0] * (x[name].ndim - 1))
    x[name][place] = bad
    segments = Segments.from_lengths(lengths)
    with torch.no_grad(), native.using(instruction_set):
        found = operator(**x, segments=segments, backend="native")
        want = operator(**{n: t.double() for n, t in x.items()}, segments=segments, backend="recurrent")
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        fine = b.isfinite()
        torch.testing.assert_close(a[fine].double(), b[fine], rtol=1e-4, atol=1e-4)


def test_a_choice_of_no_expert_is_refused():
    x, first, second = torch.randn(2, 8), torch.randn(3, 4, 8), torch.randn(3, 8, 2)
    for bad in (-1, 3):
        with pytest.raises(ShapeError, match=r"chosen must lie in \[0, 3\)"):
            ops.experts(x, torch.tensor([[0, 1], [2, bad]]), torch.ones(2, 2), first, second, backend="native")


def test_gradients_of_other_sequences_stay_finite():
    lengths = [40, 70, 20]
    x = {n: t.float().requires_grad_() for n, t in gated_delta_case(lengths, "bad", True).tensors.items()}
    with torch.no_grad():
        x["value"][75] = torch.nan
    out, _ = gated_delta(**x, segments=Segments.from_lengths(lengths), normalise=True, backend="native")
    for name, gradient in zip(x, torch.autograd.grad(out.sum(), list(x.values())), strict=True):
        others = gradient[[0, 2]] if name == "state" else torch.cat((gradient[:40], gradient[110:]))
        assert bool(others.isfinite().all()), name


def test_a_bad_logit_is_a_bad_loss_of_its_row_alone():
    logits = torch.randn(3, 40)
    logits[1, 20] = torch.nan
    losses = cross_entropy_(logits, torch.tensor([1, 2, 3]), backend="native")
    assert losses.isnan().tolist() == [False, True, False]
    assert logits.isnan().any(1).tolist() == [False, True, False]


def test_targets_out_of_range():
    with pytest.raises(ShapeError, match=r"targets must lie in \[0, 40\) or be -100, got 0 to 40"):
        cross_entropy_(torch.randn(2, 40), torch.tensor([0, 40]))


def test_nothing_at_all():
    """No rows, no channels to speak of, one tap: neither a crash nor a hang."""
    assert rms_norm(torch.zeros(0, 8), torch.ones(8), 1e-6, backend="native")[0].shape == (0, 8)
    assert swiglu(torch.zeros(0, 8), backend="native").shape == (0, 4)
    assert rope(torch.zeros(0, 2, 8), torch.zeros(0, 4), torch.zeros(0, 4), backend="native").shape == (0, 2, 8)
    assert [x.shape for x in decay_gate(torch.zeros(0, 8), torch.zeros(8), torch.zeros(2), backend="native")] == [
        (0, 8),
        (0, 8),
    ]
    assert cross_entropy_(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64), backend="native").shape == (0,)
    with torch.no_grad():
        assert linear(torch.zeros(0, 8), torch.zeros(5, 8), backend="native").shape == (0, 5)
    out, window = short_convolution(torch.ones(3, 1), torch.ones(1, 1), activation=None, backend="native")
    assert out.tolist() == [[1], [1], [1]]
    assert window.shape == (1, 0, 1)


@every_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_turn_where_they_lie(instruction_set, dtype):
    """In a slice of a wider tensor, and out of the order of their heads; elements that do not turn keep their bits."""
    mixed = torch.randn(9, 200).to(dtype)
    cos, sin = (x.repeat(1, 2) for x in torch.randn(2, 9, 11))
    with native.using(instruction_set):
        for x in (mixed[:, 31:131].unflatten(1, (4, 25)), mixed[:, :150].view(9, 25, 6).transpose(1, 2)):
            found = rope(x, cos, sin, backend="native")
            want = rope(x.contiguous(), cos, sin, backend="plain")
            torch.testing.assert_close(found, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
            assert torch.equal(found[..., 22:], x[..., 22:])


@every_instruction_set
def test_steps_of_gates_far_out(instruction_set):
    """What is not a number stays so, and steps keep their digits however small."""
    x = torch.tensor([[-torch.inf, -100.0, -80.0, -20.0, -1.0, 0.0, 1.0, 20.0, 1e30, torch.inf, torch.nan]])
    with native.using(instruction_set):
        for low, high in ((0.0, None), (0.5, 20.0)):
            found = decay_gate(x, torch.zeros(11), torch.zeros(1), low=low, high=high, backend="native")
            want = decay_gate(x.double(), torch.zeros(11).double(), torch.zeros(1).double(), low=low, high=high)
            for one, other in zip(found, want, strict=True):
                torch.testing.assert_close(one, other.float(), rtol=1e-6, atol=1e-37, equal_nan=True)


def test_taps_beside_their_bias_are_not_copied():
    weight, bias = torch.randn(6, 4), torch.randn(6)
    beside = side_by_side(weight, bias)
    x = torch.randn(5, 6)
    assert [torch.equal(a, b) for a, b in zip(beside, (weight, bias), strict=True)] == [True, True]
    assert torch.equal(*(short_convolution(x, w, bias=b)[0] for w, b in (beside, (weight, bias))))
    with torch.no_grad():
        assert _columns(*beside).data_ptr() == beside[0].data_ptr()
    for w, b in (
        (beside[0], beside[1].clone()),
        (beside[0].clone(), beside[1]),
        (beside[0], side_by_side(weight, bias)[1]),
    ):
        with torch.no_grad():
            assert _columns(w, b).data_ptr() != beside[0].data_ptr()
            assert torch.equal(_columns(w, b), torch.cat((weight, bias[:, None]), dim=1))


def test_many_taps_are_refused():
    with pytest.raises(BackendUnavailable, match="at most 64 taps"):
        short_convolution(torch.ones(3, 2), torch.ones(2, 65), backend="native")


@every_instruction_set
def test_attention_steps_over_a_ring_that_wraps(instruction_set):
    """Rows at different positions, a window of 5, grouped heads: the step kernel against the recurrence."""
    from interlace.ops.core.attention_state import AttentionState

    case = attention_case([30, 30], "ring", 5)
    x = {n: t.float() for n, t in case.tensors.items()}
    want = case.call("recurrent", case.tensors)[0]
    state = AttentionState.empty(2, 2, 12, 20, 5, x["key"])
    outputs = []
    with torch.no_grad(), native.using(instruction_set):
        first = {n: torch.cat((t[:3], t[30:31])) for n, t in x.items()}  # rows start at positions 3 and 1
        _, state = attention(**first, segments=Segments.from_lengths([3, 1]), state=state, window=5)
        for t in range(20):
            token = {n: y[[3 + t, 31 + t]] for n, y in x.items()}
            out, state = attention(**token, segments=Segments.equal(2, 1), state=state, window=5, backend="native")
            outputs.append(out)
    found = torch.stack(outputs, dim=1).double()
    torch.testing.assert_close(found[0], want[3:23], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], want[31:51], rtol=1e-5, atol=1e-5)


@every_instruction_set
@pytest.mark.parametrize("window", [None, 5])
def test_attention_carries_what_is_not_finite_forward_only(instruction_set, window):
    case = attention_case([40, 90], "bad", window)
    x = {n: t.float() for n, t in case.tensors.items()}
    x["value"][75, 0] = torch.nan
    with torch.no_grad(), native.using(instruction_set):
        found = case.call("native", x)[0]
        want = case.call("recurrent", {n: t.double() for n, t in x.items()})[0]
    seen = torch.arange(130) >= 75 if window is None else (torch.arange(130) >= 75) & (torch.arange(130) < 80)
    assert torch.equal(found[:, 0].isnan().any(-1), seen)
    fine = found.isfinite() & want.isfinite()
    torch.testing.assert_close(found[fine].double(), want[fine], rtol=1e-4, atol=1e-5)


def test_a_masked_logit_is_no_error():
    logits = torch.randn(2, 40)
    logits[:, 3] = -torch.inf
    other = logits.clone()
    targets = torch.tensor([1, 2])
    losses = [cross_entropy_(x, targets, backend=b) for x, b in ((logits, "native"), (other, "plain"))]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(logits, other)


def test_shapes_that_would_be_read_out_of_bounds_are_refused():
    with torch.no_grad():
        for weight, more in (
            (torch.zeros(5, 8), {}),
            (torch.zeros(5, 3), {"residual": torch.zeros(5)}),
            (quantise(torch.zeros(5, 64), Rounding(4)), {}),
        ):
            with pytest.raises(ShapeError, match="linear"):
                linear.__wrapped__(torch.zeros(2, 3), weight, **more)
    with pytest.raises(ShapeError, match="must be int64"):
        cross_entropy_.__wrapped__(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ShapeError, match="must hold something"):
        short_convolution(torch.zeros(3, 0), torch.zeros(0, 4))
    x = torch.zeros(2, 1, 6)
    for cos, sin in (((2, 4), (2, 6)), ((2, 8), (2, 8)), ((2, 3), (2, 3)), ((3, 4), (3, 4))):
        with pytest.raises(ShapeError, match=r"rope: cos and sin .* with turning even"):
            rope.__wrapped__(x, torch.zeros(cos), torch.zeros(sin))
    with pytest.raises(ShapeError, match=r"swiglu.*2 D"):
        swiglu(torch.zeros(3, 0))
    with pytest.raises(ShapeError, match="nothing to compute"):
        gated_delta(
            torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), torch.zeros(1, 1, 0), torch.zeros(1, 1), torch.zeros(1, 1)
        )


def test_a_state_of_another_layer_is_refused():
    from interlace.ops.core.attention_state import AttentionState

    query, key = torch.zeros(2, 4, 32), torch.zeros(2, 2, 32)
    state = AttentionState.empty(2, 2, 16, 16, None, key, 8)
    with torch.no_grad(), pytest.raises(ShapeError, match="made for another layer"):
        attention(query, key, key, state=state, segments=Segments.equal(2, 1))


def test_rms_norm_of_any_rank():
    weight = torch.randn(8)
    for x in (torch.randn(2, 3, 4, 8), torch.randn(16)[::2]):
        found, want = (rms_norm(x, weight, 1e-6, backend=b)[0] for b in ("native", "plain"))
        torch.testing.assert_close(found, want)
    empty = torch.zeros(0, 8, requires_grad=True)
    weight.requires_grad_()
    rms_norm(empty, weight, 1e-6)[0].sum().backward()
    assert weight.grad.tolist() == [0] * 8
    assert rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6, dtype=torch.float16)[0].dtype == torch.float16


def test_borders_of_another_dtype():
    x = {n: t.float() for n, t in gated_delta_case([5, 4], "borders", False).tensors.items()}
    wide = Segments(torch.tensor([0, 5, 9]), 9)
    for a, b in zip(
        gated_delta(**x, segments=wide), gated_delta(**x, segments=Segments.from_lengths([5, 4])), strict=True
    ):
        assert torch.equal(a, b)


def test_a_state_changed_under_a_graph_is_noticed():
    x = {n: t.float() for n, t in gated_delta_case([1], "version", True).tensors.items()}
    x["query"].requires_grad_()
    out, _ = gated_delta(**x)
    with torch.no_grad():
        gated_delta_step(**x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "outputs"), [(83, 71), (512, 256), (48, 5)])
def test_a_row_of_a_product_is_the_same_to_the_bit_in_any_batch(dtype, width, outputs):
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, width, generator=draw).to(dtype) for rows in (67, outputs))
    with torch.no_grad():
        whole = linear(x, weight, backend="native")
        for first, last in [(0, 1), (0, 2), (3, 6), (5, 9), (11, 16), (60, 67), (1, 33)]:
            assert torch.equal(linear(x[first:last].contiguous(), weight, backend="native"), whole[first:last])


def test_rows_of_experts_are_the_same_to_the_bit_in_any_batch():
    draw = torch.Generator().manual_seed(0)
    x, first, second = (torch.randn(*s, generator=draw) for s in ((40, 24), (6, 32, 24), (6, 20, 16)))
    chosen = torch.stack([torch.randperm(6, generator=draw)[:2] for _ in range(40)])
    weights = torch.rand(40, 2, generator=draw)
    with torch.no_grad():
        whole = experts(x, chosen, weights, first, second, backend="native")
        for a, b in [(0, 1), (5, 9), (0, 33)]:
            assert torch.equal(experts(x[a:b], chosen[a:b], weights[a:b], first, second, backend="native"), whole[a:b])
