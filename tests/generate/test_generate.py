"""Generation: what is drawn, when it stops, and that memory is what was predicted."""

from __future__ import annotations

import pytest
import torch

import interlace
from interlace.base.errors import ConfigError, PromptTooLong
from interlace.data.tokenizer import Tokenizer
from interlace.generate.engine import generate_tokens, lay_out_for_decoding, until_stop
from interlace.generate.sampling import Sampling
from interlace.model.presets import PRESETS, preset
from interlace.model.sizes import sizes


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = preset("tiny-hybrid").replace(vocabulary=300, init_std=0.3)
    model = interlace.HybridLM(config)
    model.tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 3, 290)
    return model.eval()


def test_a_seed_repeats_and_another_differs(model):
    def text(seed):
        return "".join(interlace.generate(model, "the fox", max_tokens=30, seed=seed))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_greedy_takes_the_likeliest_of_a_full_forward(model):
    ids = model.tokenizer.encode("the quick")
    made = list(generate_tokens(model, ids, max_tokens=12, sampling=Sampling(temperature=0)))
    for i, token in enumerate(made):
        with torch.no_grad():
            assert int(model(torch.tensor(ids + made[:i]))[0][-1].argmax()) == token


def test_stop_strings_end_the_text_and_are_left_out(model):
    whole = "".join(interlace.generate(model, "the", max_tokens=40, seed=3))
    stop = whole[10:13]
    cut = "".join(interlace.generate(model, "the", max_tokens=40, seed=3, stop=[stop]))
    assert cut == whole[: whole.index(stop)]
    assert "".join(until_stop(iter(["ab", "c", "", "d<e", "nd>x"]), ["<end>"])) == "abcd"
    assert "".join(until_stop(iter(["a<", "en", "!"]), ["<end>"])) == "a<en!"
    with pytest.raises(ConfigError, match="empty string"):
        list(until_stop(iter("x"), [""]))


def test_end_of_text_ends_it(model):
    ids = model.tokenizer.encode("the")
    made = list(generate_tokens(model, ids, max_tokens=20, sampling=Sampling(temperature=0)))
    tokens = model.config.tokens.model_copy(update={"eos": (made[7],)})
    model.config = model.config.model_copy(update={"tokens": tokens})
    again = list(generate_tokens(model, ids, max_tokens=20, sampling=Sampling(temperature=0)))
    assert again == made[: made.index(made[7])]


def test_filters_keep_what_they_say():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))

    def kept(**more):
        return (Sampling(temperature=1.0, **more).probabilities(logits)[0] > 0).tolist()

    assert kept() == [True] * 4
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.6) == [True, True, False, False]
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(min_p=0.29) == [True, True, True, False]
    p = Sampling(temperature=2.0).probabilities(logits)[0]
    torch.testing.assert_close(
        p, torch.tensor([0.5, 0.25, 0.15, 0.1]).sqrt() / torch.tensor([0.5, 0.25, 0.15, 0.1]).sqrt().sum()
    )


def test_draws_follow_the_probabilities():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(20_000, 3)
    drawn = Sampling(temperature=1.0).draw(logits, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=3) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)  # four standard errors


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 2.0}, {"max_tokens": 0}], ids=str
)
def test_bad_settings_name_the_field(model, bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        interlace.generate(model, "x", **bad)


def test_a_prompt_past_the_limit(model):
    model.config = model.config.replace(max_positions=20)
    with pytest.raises(PromptTooLong, match="the model's limit is 20"):
        interlace.generate(model, "the quick brown fox", max_tokens=20)


def test_the_layout_for_decoding_changes_nothing(model, tmp_path):
    before = list(generate_tokens(model, [1, 2], max_tokens=9, sampling=Sampling(temperature=0)))
    interlace.save(model, tmp_path / "a")
    interlace.save(lay_out_for_decoding(model), tmp_path / "b")
    assert list(generate_tokens(model, [1, 2], max_tokens=9, sampling=Sampling(temperature=0))) == before
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_no_tokenizer_is_a_sentence():
    with pytest.raises(ConfigError, match="has no tokenizer"):
        interlace.generate(interlace.HybridLM(preset("tiny-hybrid")), "x")


@pytest.mark.parametrize("name", list(PRESETS))
def test_memory_is_what_inspect_predicts(name, monkeypatch):
    """The state after 150 tokens is allocated once and equals the prediction for that context, to the byte."""
    config = preset(name)
    model = interlace.HybridLM(config).eval()
    held = []
    forward = type(model).forward

    def watch(self, *args, **kwargs):
        logits, state = forward(self, *args, **kwargs)
        held.append(state.nbytes)
        return logits, state

    monkeypatch.setattr(type(model), "forward", watch)
    list(generate_tokens(model, [1, 2, 3], max_tokens=147, sampling=Sampling(temperature=0)))
    predicted = sizes(config, (150,), element_bytes=4)
    assert set(held) == {predicted.state_bytes[150] + predicted.cache_bytes[150]}
