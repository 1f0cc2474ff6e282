"""The states of single layers, used twice; weights and biases that change under a layout; states of other models."""

from __future__ import annotations

import copy

import pytest
import torch

import interlace
from interlace.base.errors import ConfigError, ShapeError, StateUsed
from interlace.base.segments import Segments
from interlace.generation.capture import Decoder
from interlace.generation.pack import pack_for_decoding
from interlace.layers.base import Stream
from interlace.layers.hyena import Hyena
from interlace.layers.projection import Projections
from interlace.model.config import ModelConfig
from interlace.model.presets import PRESETS, preset
from interlace.model.state import ModelState
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.quantised import Rounding


def build(name):
    torch.manual_seed(0)
    return interlace.HybridLM(preset(name).replace(init_std=0.2)).eval()


def mixers():
    found = {}
    for name in PRESETS:
        model = build(name)
        for block in model.blocks:
            if hasattr(block, "mixer"):
                found.setdefault(type(block.mixer).__name__, (block.mixer, model.config.width))
    return found


MIXERS = mixers()


def stream(first, count):
    return Stream(Segments.from_lengths([count]), torch.arange(first, first + count))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", list(MIXERS))
def test_a_layers_state_gives_the_same_twice_or_is_refused(name, count):
    """Whoever calls a layer by itself: what was written over is never read again in silence."""
    mixer, width = MIXERS[name]
    x = torch.randn(7 + count, width)
    with torch.no_grad():
        _, state = mixer(x[:7], stream(0, 7), None)
        first = mixer(x[7:], stream(7, count), state)[0].clone()
        for again in (lambda: state, lambda: state.select([0]), lambda: type(state).concat([state])):
            try:
                found = mixer(x[7:], stream(7, count), again())[0]
            except StateUsed:
                continue
            torch.testing.assert_close(found, first)


def test_a_step_in_place_uses_the_state_up_and_returns_another():
    mixer, width = MIXERS["GatedDelta"]
    x = torch.randn(9, width)
    with torch.no_grad():
        state = mixer(x[:7], stream(0, 7), None)[1]
        after = mixer(x[7:8], stream(7, 1), state)[1]
        mixer(x[8:], stream(8, 1), after)
    if not interlace.ops.core.kernels.available():
        pytest.skip("only the native step works in place")
    with pytest.raises(StateUsed):
        state.select([0])
    with pytest.raises(StateUsed):
        type(after).concat([after])


@pytest.mark.parametrize("window", [3, None])
def test_nothing_is_made_of_keys_that_were_written_over(window):
    state = AttentionState.empty(1, 1, 2, 2, window, torch.zeros(1))
    key = torch.arange(8.0).reshape(4, 1, 2)
    state = state.append(key, key, Segments.from_lengths([4]))
    kept = state.select([0])
    state.append(key[:2] + 100, key[:2] + 100, Segments.from_lengths([2]))
    for use in (lambda: state.select([0]), lambda: AttentionState.concat([kept, state])):
        with pytest.raises(StateUsed, match="used up"):
            use()
    assert torch.equal(kept.past(0)[0], key[-3:] if window else key)


@pytest.mark.parametrize("other", ["tiny-recurrent", "tiny-hybrid-rope", "tiny-transformer"])
@pytest.mark.parametrize("use", ["call", "concat", "decoder"])
def test_the_state_of_another_model_is_named_so(use, other):
    model, tokens = build("tiny-hybrid"), torch.arange(5)
    with torch.no_grad():
        state, own = build(other)(tokens)[1], model(tokens)[1]
        with pytest.raises(ShapeError, match=r"state.*another model"):
            if use == "call":
                model(tokens, state=state)
            elif use == "concat":
                ModelState.concat([own, state])
            else:
                Decoder(model, state)


def test_a_copy_of_a_model_goes_on_from_its_state():
    model, tokens = build("tiny-hybrid"), torch.arange(5)
    with torch.no_grad():
        state = model(tokens)[1]
        found = copy.deepcopy(model)(tokens, state=state.fork(0))[0]
        torch.testing.assert_close(found, model(tokens, state=state)[0])


# Weights and biases that change after the layout


def attention_model(bias):
    attention = {"heads": 2, "qk_norm": "none", "position": "none", "bias": bias}
    table = {"width": 32, "depth": 2, "vocabulary": 61, "pattern": ["attention"], "mlp": {"width": 40}}
    torch.manual_seed(0)
    model = interlace.HybridLM(ModelConfig.from_dict({**table, "attention": attention})).eval()
    for block in model.blocks:
        for name in ("query", "key", "value", "output"):
            if bias:
                torch.nn.init.constant_(getattr(block.mixer, name).bias, 0.3)
    return model


def remove(*names):
    def change(mixer):
        for name in names:
            getattr(mixer, name).bias = None

    return change


def add(*names):
    def change(mixer):
        for name in names:
            getattr(mixer, name).bias = torch.nn.Parameter(torch.ones(32))

    return change


def transpose(mixer):
    mixer.key.weight.data = mixer.key.weight.data.t()


def reverse(mixer):
    mixer.key.weight.data = mixer.key.weight.data.flip(0)


def new_layer(mixer):
    torch.manual_seed(5)
    mixer.value = torch.nn.Linear(32, 32)


CHANGES = {
    "first bias gone": (True, remove("query")),
    "last bias gone": (True, remove("value")),
    "all biases gone": (True, remove("query", "key", "value")),
    "a lone bias gone": (True, remove("output")),
    "one bias more": (False, add("key")),
    "biases more": (False, add("query", "key", "value")),
    "a lone bias more": (False, add("output")),
    "another bias": (True, add("key")),
    "transposed": (False, transpose),
    "reversed": (False, reverse),
    "a new layer": (True, new_layer),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_packed_weights_and_biases_are_those_that_the_layers_have(name):
    bias, change = CHANGES[name]
    packed, plain = pack_for_decoding(attention_model(bias)), attention_model(bias)
    for module in packed.modules():
        if isinstance(module, Projections):
            module.pack()
    tokens = torch.arange(9)
    with torch.no_grad():
        packed(tokens)
        for model in (packed, plain):
            change(model.blocks[0].mixer)
        torch.testing.assert_close(packed(tokens)[0], plain(tokens)[0])
    torch.testing.assert_close(packed(tokens)[0], plain(tokens)[0])  # the path that training takes


@pytest.mark.parametrize("name", ["transposed", "last bias gone", "a lone bias more"])
def test_a_decoder_sees_them_too(name):
    bias, change = CHANGES[name]
    model, tokens = pack_for_decoding(attention_model(bias)), torch.arange(9)
    with torch.no_grad():
        decoder = Decoder(model, model(tokens[:3], state=model.empty_state(1, 20))[1])
        for t in (3, 4):
            decoder.step(tokens[t : t + 1])
        change(model.blocks[0].mixer)
        state = decoder.state.fork(0)
        torch.testing.assert_close(decoder.step(tokens[5:6]), model(tokens[5:6], state=state)[0])


def test_kept_taps_follow_weights_of_inference_mode():
    with torch.inference_mode():
        layer = next(m for m in build("tiny-hyena").modules() if isinstance(m, Hyena))
        before = layer.filter(9).clone()
        layer.taps.weight.mul_(3.0)
        torch.testing.assert_close(layer.filter(9), 3 * before)


def test_a_tied_head_of_inference_mode_follows_its_embedding():
    with torch.inference_mode():
        model = interlace.HybridLM(preset("tiny-hybrid").replace(init_std=0.2, tied_embeddings=True)).eval()
        pack_for_decoding(model, Rounding(8))
        model.embedding.weight.mul_(-1)
        torch.testing.assert_close(model.logits(torch.eye(model.config.width)), model.embedding.weight.T)


# Arguments


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "uint32", "uint64", "int32"])
@pytest.mark.parametrize("count", [5, 100])
def test_tokens_are_integers_of_any_kind(dtype, count):
    model = build("tiny-recurrent")
    with torch.no_grad():
        found = model(torch.ones(count, dtype=getattr(torch, dtype)))[0]
        torch.testing.assert_close(found, model(torch.ones(count, dtype=torch.int64))[0])
        with pytest.raises(ShapeError, match="vocabulary"):
            model(torch.full((count,), 99, dtype=getattr(torch, dtype)))


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.bool, "bfloat16", "float33", torch.float8_e4m3fn, torch.complex64, 3]
)
@pytest.mark.parametrize("use", ["load", "build", "convert"])
def test_a_dtype_that_no_weights_have_is_refused(tmp_path, dtype, use):
    from interlace.checkpoint.convert import convert

    interlace.save(build("tiny-transformer"), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"dtype.*torch\.bfloat16"):
        if use == "load":
            interlace.load(tmp_path / "model", dtype=dtype)
        elif use == "build":
            interlace.HybridLM(preset("tiny-transformer"), dtype=dtype)
        else:
            convert(tmp_path / "model", tmp_path / "out", dtype=dtype)


@pytest.mark.parametrize("sizes", [(1.5, 2), (2, 1.5), (2.0, 3), (1, float("nan"))], ids=str)
def test_equal_segments_are_counted_in_whole_numbers(sizes):
    with pytest.raises(ShapeError, match="segments.*integers"):
        Segments.equal(*sizes)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Segments.equal(2, 1 << 30),
        lambda: Segments.equal(1 << 40, 1),
        lambda: Segments.from_offsets([0, 1]),
        lambda: build("tiny-recurrent").empty_state(2).select([0.0]),
        lambda: build("tiny-recurrent").empty_state(2).select("0"),
        lambda: build("tiny-recurrent").empty_state(2).select(3),
        lambda: build("tiny-recurrent")([1, 2, 3]),
    ],
)
def test_counts_rows_and_tokens_are_what_they_must_be(make):
    with pytest.raises(ShapeError, match="segments|rows|tokens"):
        make()


def test_rows_may_be_named_by_anything_that_counts():
    state = build("tiny-recurrent").empty_state(3)
    assert state.select(i for i in (0, 2)).count == state.select(torch.tensor([1, 1])).count == 2


@pytest.mark.parametrize("source", ["~nobody_of_this_name/model", "a" * 5000, "a/" * 3000, "a\0b"], ids=[1, 2, 3, 4])
def test_a_source_that_no_folder_can_have(source):
    from interlace.base.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no such user|cannot be used"):
        interlace.load(source)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"theta": 1.0}, "theta"),
        ({"beta_fast": -1.0}, "beta_fast"),
        ({"beta_slow": 0.0}, "beta_slow"),
        ({"factor": 0.0}, "factor"),
    ],
    ids=str,
)
def test_yarn_refuses_what_it_cannot_reckon_with(changes, word):
    from interlace.layers.rope import RopeConfig

    with pytest.raises(ValueError, match=word):
        RopeConfig(scaling="yarn", original_context=8, **{"factor": 2.0, **changes})
