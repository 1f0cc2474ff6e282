"""Weights that were laid out are read as they are now; a state that was used up is refused."""

from __future__ import annotations

import copy

import pytest
import torch

import interlace
from interlace.base.errors import ShapeError, StateUsed
from interlace.base.segments import Segments
from interlace.generation.capture import Decoder
from interlace.generation.pack import pack_for_decoding
from interlace.layers.hyena import Hyena
from interlace.layers.projection import Projections
from interlace.model.presets import PRESETS, preset
from interlace.ops import attention


def build(name):
    torch.manual_seed(0)
    return interlace.HybridLM(preset(name).replace(init_std=0.2)).eval()


def packed(model):
    """Packed whether there are native kernels or not."""
    pack_for_decoding(model)
    for module in model.modules():
        if isinstance(module, Projections):
            module.pack()
    return model


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def by_data(owner, leaf, new):
    getattr(owner, leaf).data = new


def by_parameter(owner, leaf, new):
    setattr(owner, leaf, torch.nn.Parameter(new))


def by_copy(owner, leaf, new):
    with torch.no_grad():
        getattr(owner, leaf).copy_(new)


def by_assigned_dict(owner, leaf, new):
    owner.load_state_dict({leaf: new}, strict=False, assign=True)


WAYS = [by_data, by_parameter, by_copy, by_assigned_dict]


OTHERS = ["tiny-bare", "tiny-kimi", "tiny-granite", "tiny-mamba", "tiny-lstm"]


@pytest.mark.parametrize(
    ("name", "way"),
    [("tiny-hybrid", way) for way in WAYS] + [(name, WAYS[i % len(WAYS)]) for i, name in enumerate(OTHERS)],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_every_weight_that_is_replaced_after_the_layout_is_seen(name, way):
    """One after another: first and later members of each group, biases and single layers all have their turn."""
    model, fresh = packed(build(name)), build(name)
    tokens = torch.arange(9)
    for full in [n for n, _ in model.named_parameters() if n != "embedding.weight"]:
        path, _, leaf = full.rpartition(".")
        owner = model.get_submodule(path)
        old = getattr(owner, leaf)
        new = old.detach() + 0.3 * torch.randn_like(old)
        way(owner, leaf, new)
        with torch.no_grad():
            fresh.get_parameter(full).copy_(new)
            assert relative(model(tokens)[0], fresh(tokens)[0]) < 1e-4, full


def test_two_weights_that_change_places_are_seen():
    model = packed(build("tiny-hybrid"))
    mlp = model.blocks[0].mlp
    mlp.gate.weight, mlp.up.weight = mlp.up.weight, mlp.gate.weight
    fresh = interlace.HybridLM(model.config).eval()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        assert relative(model(torch.arange(9))[0], fresh(torch.arange(9))[0]) < 1e-4


def test_a_weight_replaced_between_two_steps_of_a_decoder_is_seen():
    """A pass that was taken down holds addresses: it must notice that they are no longer the weights'."""
    model = pack_for_decoding(build("tiny-hybrid"))
    tokens = torch.arange(12)
    with torch.no_grad():
        decoder = Decoder(model, model(tokens[:3], state=model.empty_state(1, 20))[1])
        decoder.step(tokens[3:4])
        decoder.step(tokens[4:5])
        state = decoder.state.fork(0)
        weight = model.blocks[0].mlp.up.weight
        weight.data = weight.data + 0.3 * torch.randn_like(weight)
        fresh = interlace.HybridLM(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        found = decoder.step(tokens[5:6]).clone()
        assert relative(found, fresh(tokens[5:6], state=state)[0]) < 1e-4


def test_a_filter_that_is_kept_notices_weights_at_an_old_address():
    """Hyena keeps its taps by address; a freed address may be given to other values."""
    model = build("tiny-hyena")
    layer = next(m for m in model.modules() if isinstance(m, Hyena))
    with torch.no_grad():
        for _ in range(100):
            layer.filter(9)
            weight, before = layer.mix.weight, layer.mix.weight.data_ptr()
            for _ in range(2):
                weight.data = torch.randn(weight.shape)
            if weight.data_ptr() == before:
                break
        torch.testing.assert_close(layer.filter(9), layer._filter(9))


@pytest.mark.parametrize("name", list(PRESETS))
def test_models_made_under_inference_mode_run(name):
    with torch.inference_mode():
        pack_for_decoding(build(name))(torch.arange(5))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", list(PRESETS))
def test_a_state_that_was_used_up_is_refused(name, count):
    model = build(name)
    tokens = torch.randint(model.config.vocabulary, (30,))
    with torch.no_grad():
        _, state = model(tokens[:20], state=model.empty_state(1, 60))
        _, after = model(tokens[20 : 20 + count], state=state)
        with pytest.raises(ShapeError, match=r"state.*used.*(fork|select|copy)"):
            model(tokens[20 : 20 + count], state=state)
        model(tokens[:1], state=after)


@pytest.mark.parametrize("how", ["select", "fork", "concat", "decoder", "gradients"])
def test_nothing_is_made_of_a_used_up_state(how):
    model = build("tiny-hybrid")
    with torch.no_grad():
        _, state = model(torch.arange(5), state=model.empty_state(1, 20))
        model(torch.tensor([1]), state=state)
    with pytest.raises(ShapeError, match=r"state.*used"):
        if how == "select":
            state.select([0])
        elif how == "fork":
            state.fork(0)
        elif how == "concat":
            type(state).concat([state, model.empty_state(1)])
        elif how == "decoder":
            Decoder(model, state)
        else:
            model(torch.tensor([1]), state=state)


def test_a_decoder_uses_its_state_up():
    model = build("tiny-recurrent")
    with torch.no_grad():
        _, state = model(torch.arange(5), state=model.empty_state(1, 20))
        decoder = Decoder(model, state)
        decoder.step(torch.tensor([1]))
        with pytest.raises(ShapeError, match=r"state.*used"):
            model(torch.tensor([1]), state=state)


@pytest.mark.parametrize("name", list(PRESETS))
def test_copies_taken_before_go_on_apart(name):
    model = build(name)
    tokens = torch.randint(model.config.vocabulary, (30,))
    with torch.no_grad():
        _, state = model(tokens[:20], state=model.empty_state(1, 60))
        kept = state.fork(0)
        first, _ = model(tokens[20:25], state=state)
        again, _ = model(tokens[20:25], state=kept)
    assert relative(again, first) < 1e-5


def test_a_call_that_was_refused_uses_nothing_up():
    model = build("tiny-hybrid")
    with torch.no_grad():
        _, state = model(torch.arange(5), state=model.empty_state(1, 20))
        with pytest.raises(ShapeError):
            model(torch.arange(4), Segments.from_lengths([2, 2]), state)
        model(torch.tensor([1]), state=state)


def test_the_operators_own_state_is_refused_too():
    draw = [torch.randn(4, 2, 8) for _ in range(3)]
    _, state = attention(*draw)
    attention(*(x[:1] for x in draw), state=state)
    with pytest.raises(ShapeError, match=r"state.*used"):
        attention(*(x[:1] for x in draw), state=state)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_state_that_is_written_into_rows_goes_on_as_it_would_have(name):
    """Sequences of other lengths take the place of rows; those that stay are as they were."""
    model = build(name).double()
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(model.config.vocabulary, (n,), generator=draw) for n in (5, 3, 7, 9, 6)]
    with torch.no_grad():
        _, held = model(torch.cat(tokens[:3]), Segments.from_lengths([5, 3, 7]))
        _, new = model(torch.cat(tokens[3:]), Segments.from_lengths([9, 6]))
        kept = new.select([0, 1])
        held.write([2, 0], new)
        assert held.positions.tolist() == [6, 3, 9]
        more = torch.randint(model.config.vocabulary, (3, 4), generator=draw)
        found, _ = model(more, state=held)
        for row, first in enumerate((4, 1, 3)):
            want, _ = model(torch.cat((tokens[first], more[row])))
            torch.testing.assert_close(found[row], want[-4:], rtol=1e-8, atol=1e-9)
        again, _ = model(more[:2], state=new)  # what was written from is not used up
        copied, _ = model(more[:2], state=kept)
        torch.testing.assert_close(again, copied)


def test_what_cannot_be_written_into_a_state_is_refused():
    model, other = build("tiny-hybrid"), build("tiny-mamba")
    two, one = model.empty_state(2), model.empty_state(1)
    for rows in ([0, 1], [2], [], ["a"], [-3]):
        with pytest.raises(ShapeError, match="rows"):
            two.write(rows, one)
    with pytest.raises(ShapeError, match="another model"):
        two.write([0], other.empty_state(1))
    model(torch.arange(3), state=one)
    with pytest.raises(StateUsed):
        two.write([0], one)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_state_answers(name):
    """Its memory, its tensors, and how many more tokens fit."""
    model = build(name)
    state = model.empty_state(2, 16)
    with torch.inference_mode():
        _, state = model(torch.arange(10).view(2, 5), state=state)
    assert state.nbytes == sum(x.nbytes for x in state.tensors()) > 0
    grows = any("attention" in kind or kind == "hyena" for kind in model.config.pattern)
    assert state.room >= 11
    assert grows or state.room == 1 << 62
    assert all(x.shape[0] == 2 for x in state.tensors())
