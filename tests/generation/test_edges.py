"""Edges of what users hand in: words, or the value of the limit, and never torch's own error."""

from __future__ import annotations

import pytest
import torch

import interlace
from interlace.base.errors import ConfigError, Failure, ShapeError
from interlace.base.segments import Segments
from interlace.data.tokenizer import Tokenizer
from interlace.generation.batch import answers
from interlace.generation.capture import Decoder
from interlace.generation.conversation import Conversation
from interlace.generation.request import Request
from interlace.generation.rows import JoinedRows, SlotRows
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.layers.rope import RopeConfig, frequencies, rotary
from interlace.model.presets import preset
from interlace.train.objectives.next_token import next_token_loss

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300, init_std=0.3)).eval()
    model.tokenizer = Tokenizer.train(["the quick brown fox"] * 3, 290)
    return model


# Sampling


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-30, 1e-8, -0.0, 0])
def test_a_tiny_temperature_is_its_limit_the_likeliest_token(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0], [-5.0, -7.0, -6.0]])
    sampling = Sampling(temperature=temperature)
    assert sampling.probabilities(logits).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert sampling.draw(logits, torch.Generator().manual_seed(0)).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e20, 1e40, 1e308])
def test_a_huge_temperature_is_its_limit_an_even_draw(temperature):
    p = Sampling(temperature=temperature).probabilities(torch.tensor([[1.0, 3.0, 2.0]]))
    torch.testing.assert_close(p, torch.full((1, 3), 1 / 3))


def test_a_tiny_top_p_keeps_the_likeliest_token():
    p = Sampling(temperature=1.0, top_p=1e-320).probabilities(torch.tensor([[1.0, 3.0, 2.0]]))
    assert p.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": NAN},
        {"temperature": INF},
        {"temperature": -1e-9},
        {"temperature": "0.5"},
        {"temperature": None},
        {"top_p": NAN},
        {"top_p": "1"},
        {"min_p": NAN},
        {"top_k": 2.5},
        {"top_k": NAN},
        {"top_k": True},
    ],
    ids=str,
)
def test_what_is_no_setting_names_its_field(bad):
    ((field, value),) = bad.items()
    with pytest.raises(ConfigError, match=f"{field}.*{value}"):
        Sampling(**bad)


@pytest.mark.parametrize("logits", [[NAN, 1.0, 2.0], [INF, 1.0, 2.0], [-INF] * 3], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_said(logits, temperature):
    with pytest.raises(interlace.base.errors.InterlaceError, match="logits"):
        Sampling(temperature).draw(torch.tensor([logits]), torch.Generator())


def test_a_token_that_a_model_forbids_is_never_drawn():
    logits = torch.tensor([[-INF, 1.0, -INF]])
    assert Sampling(1.0).draw(logits, torch.Generator()).tolist() == [1]


# Token ids: every entry


def by_forward(model, ids):
    with torch.no_grad():
        return model(torch.as_tensor(ids))


def by_hidden(model, ids):
    return model.hidden(torch.as_tensor(ids))


def by_generate_tokens(model, ids):
    return list(generate_tokens(model, ids, max_tokens=2))


def by_answers(model, ids):
    return answers(model, [Request((1,), 2), Request(ids, 2)])


def by_decoder(model, ids):
    with torch.no_grad():
        decoder = Decoder(model, model(torch.tensor([1]), state=model.empty_state(1, 9))[1])
        return decoder.step(torch.as_tensor(ids)[:1])


def by_replay(model, ids):
    with torch.no_grad():
        decoder = Decoder(model, model(torch.tensor([1]), state=model.empty_state(1, 9))[1])
        decoder.step(torch.tensor([1]))
        return decoder.step(torch.as_tensor(ids)[:1])


ENTRIES = [by_forward, by_hidden, by_generate_tokens, by_answers, by_decoder, by_replay]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("ids", "shown"), [([300, 1], "300"), ([-1, 1], "-1"), ([1 << 40, 1], str(1 << 40))], ids=str)
def test_ids_outside_the_vocabulary_are_named(model, entry, ids, shown):
    with pytest.raises(ShapeError, match=rf"tokens.*\[0, 300\).*{shown}"):
        entry(model, ids)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("ids", [[1.0, 2.0], [1.5, 2.0], [True, False]], ids=str)
def test_tokens_that_are_no_integers_are_refused(model, entry, ids):
    with pytest.raises(ShapeError, match="tokens.*integer"):
        entry(model, ids)


@pytest.mark.parametrize("ids", [[], ["a"], [None], [[1, 2]], "12"], ids=str)
def test_a_prompt_that_is_no_list_of_ids_is_refused(model, ids):
    with pytest.raises(ConfigError, match="prompt|tokens"):
        by_generate_tokens(model, ids)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int64], ids=str)
def test_any_integers_are_tokens(model, dtype):
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([1, 2], dtype=dtype))[0], model(torch.tensor([1, 2]))[0])


def test_a_refused_token_leaves_a_decoder_as_it_was(model):
    with torch.no_grad():
        decoder = Decoder(model, model(torch.tensor([1, 2]), state=model.empty_state(1, 20))[1])
        decoder.step(torch.tensor([3]))
        with pytest.raises(ShapeError):
            decoder.step(torch.tensor([300]))
        found = decoder.step(torch.tensor([4])).clone()
        want = model(torch.tensor([1, 2, 3, 4]))[0][-1:]
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert decoder.state.positions.tolist() == [4]


def test_the_check_of_ids_does_not_break_the_trace(model):
    """On the meta device and under torch.compile nothing is read from the tokens."""
    shape = interlace.HybridLM(model.config, device="meta")(torch.zeros(2, 3, dtype=torch.int64, device="meta"))[
        0
    ].shape
    assert shape == (2, 3, 300)


# Counts


@pytest.mark.parametrize("most", [0, -1, 2.5, NAN, True, "3", None], ids=str)
@pytest.mark.parametrize("entry", ["generate", "tokens", "batch", "conversation"])
def test_max_tokens_is_a_count(model, entry, most):
    model.config = model.config.replace(max_positions=100)  # nan would run to it, or for ever
    with pytest.raises(ConfigError, match="max_tokens.*(integer|at least 1)"):
        if entry == "generate":
            list(interlace.generate(model, "the", max_tokens=most))
        elif entry == "tokens":
            list(generate_tokens(model, [1], max_tokens=most))
        elif entry == "conversation":
            Conversation(model, Sampling(), most).close()
        else:
            answers(model, [Request((1,), most)])


@pytest.mark.parametrize("seed", [1.5, "1", True, 1 << 64, -1], ids=str)
def test_a_seed_is_an_integer_that_fits(model, seed):
    with pytest.raises(ConfigError, match="seed"):
        list(interlace.generate(model, "the", max_tokens=2, seed=seed))


@pytest.mark.parametrize("stop", [3, [None], [1]], ids=str)
def test_stop_is_a_list_of_strings(model, stop):
    with pytest.raises(ConfigError, match="stop"):
        list(interlace.generate(model, "the", max_tokens=5, stop=stop))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Segments.from_lengths([1.7]),
        lambda: Segments.from_lengths([NAN]),
        lambda: Segments.from_lengths(["3"]),
        lambda: Segments.from_lengths([1 << 31]),
        lambda: Segments.from_offsets(torch.tensor([0.0, 1.5, 3.7])),
        lambda: Segments.equal(0, 3),
        lambda: Segments.equal(2, 0),
        lambda: Segments.equal(-1, 3),
    ],
)
def test_segments_are_counts_that_fit(make):
    with pytest.raises(ShapeError, match="segments"):
        make()


@pytest.mark.parametrize("rows", [[5], [-2], []], ids=str)
def test_rows_of_a_state_exist(model, rows):
    with pytest.raises(ShapeError, match="rows"):
        model.empty_state(1).select(rows)


# Loss weights


def loss(weights, targets=(1, 2, 3, 4, 5, 6)):
    torch.manual_seed(0)
    hidden, head = torch.randn(len(targets), 8, requires_grad=True), torch.randn(10, 8)
    value = next_token_loss(hidden, head, torch.tensor(targets), weights=weights)
    value.backward()
    return float(value.detach()), hidden.grad


@pytest.mark.parametrize(
    ("weights", "targets"),
    [
        ([0.0] * 6, (1, 2, 3, 4, 5, 6)),
        ([0, 0, 0, 0, 0, 1.0], (1, 2, 3, 4, 5, -100)),
        ([0.0, 1, 1, 1, 1, 1], (1, -100, -100, -100, -100, -100)),
        ([1.0] * 6, (-100,) * 6),
    ],
    ids=str,
)
def test_nothing_that_counts_is_a_loss_of_zero(weights, targets):
    value, gradient = loss(torch.tensor(weights), targets)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 3e38])
def test_the_scale_of_weights_does_not_matter(scale):
    value, gradient = loss(torch.full((6,), scale))
    plain, expected = loss(None)
    assert value == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [NAN, INF, -1.0])
def test_weights_are_finite_and_not_negative(bad):
    with pytest.raises(ShapeError, match=f"weights.*{bad}"):
        loss(torch.tensor([bad, 1, 1, 1, 1, 1]))


def test_weights_are_as_many_as_targets():
    with pytest.raises(ShapeError, match="weights"):
        loss(torch.ones(5))


# Rotary angles

ROPES = {
    "plain": RopeConfig(),
    "theta 1e4": RopeConfig(theta=1e4),
    "a quarter of the head": RopeConfig(theta=1e7, fraction=0.25),
    "linear": RopeConfig(theta=1e4, scaling="linear", factor=8),
    "llama3": RopeConfig(scaling="llama3", factor=8, original_context=8192),
    "yarn": RopeConfig(theta=1e6, scaling="yarn", factor=4, original_context=32_768),
    "yarn, not rounded": RopeConfig(theta=1.5e5, scaling="yarn", factor=32, original_context=4096, truncate=False),
}


def exact(rope, dim, position):
    """cos and sin with 40 digits."""
    mp = pytest.importorskip("mpmath").mp
    mp.dps = 40
    m, turning = mp.mpf, rope.turning(dim)
    waves = [m(rope.theta) ** (-m(2 * i) / turning) for i in range(turning // 2)]
    if rope.scaling == "linear":
        waves = [w / m(rope.factor) for w in waves]
    if rope.scaling == "llama3":
        low, high = m(rope.low_frequency_factor), m(rope.high_frequency_factor)
        turns = [rope.original_context * w / (2 * mp.pi) for w in waves]
        kept = [min(max((t - low) / (high - low), m(0)), m(1)) for t in turns]
        waves = [w * k + w / m(rope.factor) * (1 - k) for w, k in zip(waves, kept, strict=True)]
    if rope.scaling == "yarn":
        low, high = (
            turning * mp.log(rope.original_context / (m(beta) * 2 * mp.pi)) / (2 * mp.log(m(rope.theta)))
            for beta in (rope.beta_fast, rope.beta_slow)
        )
        if rope.truncate:
            low, high = mp.floor(low), mp.ceil(high)
        low, high = max(low, 0), min(high, turning - 1)
        share = [min(max((i - low) / max(high - low, m("0.001")), m(0)), m(1)) for i in range(len(waves))]
        waves = [w / m(rope.factor) * s + w * (1 - s) for w, s in zip(waves, share, strict=True)]
    return [[float(f(position * w)) for w in waves * 2] for f in (mp.cos, mp.sin)]


@pytest.mark.parametrize("position", [0, 1, 4095, 131_071, 524_289, 999_999])
@pytest.mark.parametrize("name", list(ROPES))
def test_angles_are_right_to_a_millionth_up_to_a_million_positions(name, position):
    rope = ROPES[name]
    found = rotary(torch.tensor([position]), rope, 64)
    factor = frequencies(rope, rope.turning(64))[1]
    for values, want in zip(found, exact(rope, 64, position), strict=True):
        assert values.dtype == torch.float32
        assert (values[0].double() - factor * torch.tensor(want, dtype=torch.float64)).abs().max() < 1e-6


def test_scores_far_out_depend_on_the_distance_alone():
    """Query and key that stand 5 apart score the same at the start and at a million."""
    from interlace.ops import rope as turn

    query, key = torch.randn(2, 1, 1, 64)
    scores = []
    for first in (0, 131_072, 999_990):
        turned = [turn(x, *rotary(torch.tensor([p]), RopeConfig(), 64)) for x, p in ((query, first + 5), (key, first))]
        scores.append(float((turned[0] * turned[1]).sum()))
    assert scores == pytest.approx([scores[0]] * 3, abs=2e-5)  # 64 products, each right to about 1e-7


# Whose value is wrong, what is too large


def test_the_release_is_blamed_for_its_own_values_alone(model, tmp_path):
    interlace.save(model, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"do_sample": true, "top_p": 7, "temperature": 0.5}')
    loaded = interlace.load(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"^generation_config.json: top_p: .* got 7; correct it, or give top_p$"):
        interlace.generate(loaded, "the", max_tokens=2)
    with pytest.raises(ConfigError, match=r"^temperature: must be at least 0, got -1$"):
        interlace.generate(loaded, "the", max_tokens=2, top_p=0.5, temperature=-1)


@pytest.mark.parametrize("wrong", [1 << 70, -1, 300])
def test_an_id_of_any_size_that_the_vocabulary_lacks_is_named(model, wrong):
    for make in (
        lambda: generate_tokens(model, [1, wrong], max_tokens=3),
        lambda: answers(model, [Request((1,), 3), Request((2, wrong), 3)]),
    ):
        with pytest.raises(ShapeError, match=rf"tokens: must lie in \[0, 300\), the model's vocabulary, got {wrong}$"):
            make()


@pytest.mark.parametrize("where", ["empty_state", "step"])  # of a model, and of what decodes
def test_a_state_that_memory_does_not_hold_is_a_failure_in_words(model, monkeypatch, where):
    def refused(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 512000000000 bytes")

    for owner in (type(model),) if where == "empty_state" else (SlotRows, JoinedRows):
        monkeypatch.setattr(owner, where, refused)
    talk = Conversation(model, Sampling(), 3)
    try:
        for make in (
            lambda: list(generate_tokens(model, [1, 2], max_tokens=3)),
            lambda: answers(model, [Request((1, 2), 3)]),
            lambda: list(talk.say("the")),
        ):
            with pytest.raises(Failure, match=r"^max_tokens: memory does not hold the state of \d+ tokens"):
                make()
    finally:
        talk.close()
