"""Many prompts at once, and a conversation that goes on where it was: both as one prompt alone."""

from __future__ import annotations

import pytest
import torch

from interlace.base.errors import ConfigError, PromptTooLong
from interlace.data.tokenizer import Tokenizer
from interlace.generation import lookup, scheduler
from interlace.generation.batch import answers
from interlace.generation.conversation import Conversation, end_tokens
from interlace.generation.pack import pack_for_decoding
from interlace.generation.request import Request
from interlace.generation.sampling import Sampling
from interlace.generation.text import generate_tokens
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM


def make(pattern=("gated_delta", "attention"), **more):
    torch.manual_seed(0)
    table = {
        "width": 32,
        "depth": 2,
        "vocabulary": 300,
        "pattern": list(pattern),
        "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
        "attention": {"heads": 2, "position": "rope"},
        "mlp": {"width": 48},
        "init_std": 0.3,
        **more,
    }
    model = HybridLM(ModelConfig.from_dict(table)).eval()
    model.tokenizer = Tokenizer.train(["some words to learn from, one two three"] * 3, 300)
    return model


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batched_row_is_its_solo_run(laid_out, temperature):
    model = make(tokens={"eos": [7, 8, 9]})
    if laid_out:
        pack_for_decoding(model)
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(10, 300, (n,), generator=draw).tolist() for n in (1, 17, 5, 30, 2, 9)]
    most = [40, 3, 25, 40, 1, 12]
    sampling = Sampling(temperature)
    asked = zip(prompts, most, range(6), strict=True)
    together = answers(model, [Request(tuple(ids), count, sampling, seed=seed) for ids, count, seed in asked])
    for place, (ids, count) in enumerate(zip(prompts, most, strict=True)):
        alone = list(generate_tokens(model, ids, max_tokens=count, sampling=sampling, seed=place))
        assert together[place].tokens == alone
        assert together[place].ended == (len(alone) < count)


@pytest.mark.parametrize("most", [1, 8, 20, 40])
def test_prompts_are_read_a_bounded_number_of_tokens_at_a_time(most, monkeypatch):
    """However many come at once: short ones together, a long one in parts; the answers are the solo ones."""
    model, read = make(), []
    monkeypatch.setattr(scheduler, "PREFILL", most)
    monkeypatch.setattr(scheduler, "PART", most)
    forward = HybridLM.forward

    def counted(self, tokens, *more, **options):
        read.append(tokens.numel())
        return forward(self, tokens, *more, **options)

    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(10, 300, (n,), generator=draw).tolist() for n in (1, 17, 5, 30, 2, 9)]
    alone = [list(generate_tokens(model, ids, max_tokens=6, sampling=Sampling(0.0))) for ids in prompts]
    monkeypatch.setattr(HybridLM, "forward", counted)
    together = answers(model, [Request(tuple(ids), 6, Sampling(0.0)) for ids in prompts])
    assert [answer.tokens for answer in together] == alone
    assert max(read) <= max(most, len(prompts))
    assert sum(read) >= sum(map(len, prompts))


def test_bad_batches_are_refused():
    model = make(max_positions=20)
    with pytest.raises(PromptTooLong, match="15 tokens and max_tokens = 10 make 25"):
        answers(model, [Request((1,) * 15, 10)])
    with pytest.raises(ConfigError, match="0 tokens to go on from"):
        answers(model, [Request((), 10)])


class Letters(Sampling):
    """Draws only letters that never merge, so that a text is cut into the tokens it was made of."""

    def draw(self, logits, generator):
        allowed = [Tokenizer.train(["x"], 257).encode(c)[0] for c in "qzQZ"]
        return torch.tensor(allowed[int(logits[..., allowed].argmax())])


def test_a_conversation_reads_what_is_new_alone_and_answers_as_if_it_read_all(monkeypatch):
    monkeypatch.setattr(lookup.Pace, "worth", lambda *_: False)  # passes that try tokens are none of a prompt
    model = make()
    sampling = Letters(0.0)
    talk = Conversation(model, sampling, 12, "Be brief.")
    read = []
    forward = HybridLM.forward

    def counted(self, tokens, *args, **more):
        read.append(tokens.numel())
        return forward(self, tokens, *args, **more)

    monkeypatch.setattr(HybridLM, "forward", counted)
    said, expected, reused, known = [], [], 0, 0
    for turn in ("one", "two", "three", "one two", "learn"):
        ids = model.tokenizer.encode(talk.chat.render([*talk.messages, {"role": "user", "content": turn}], True))
        before = talk._scheduler.reused_tokens
        said.append("".join(talk.say(turn)))
        expected.append(len(ids) - (talk._scheduler.reused_tokens - before))
        reused += talk._scheduler.reused_tokens > before
        assert not known or len(ids) - expected[-1] >= known - 1  # all that was read or made, but the last token
        known = len(ids) + talk.made_tokens
    assert [n for n in read if n > 1] == [n for n in expected if n > 1]
    assert reused == 4
    assert [m["role"] for m in talk.messages] == ["system", *["user", "assistant"] * 5]
    for place, text in enumerate(said):
        before = talk.messages[: 2 + 2 * place]
        ids = model.tokenizer.encode(talk.chat.render(before, True))
        alone = list(generate_tokens(model, ids, max_tokens=12, sampling=sampling))
        assert "".join(model.tokenizer.stream(alone)) == text
    talk.begin()
    assert talk.messages == []
    talk.close()


def test_an_answer_that_is_broken_off_leaves_no_turn():
    model = make()
    talk = Conversation(model, Sampling(0.0), 12)
    pieces = talk.say("one")
    next(pieces)
    pieces.close()
    assert talk.messages == []
    fresh = Conversation(model, Sampling(0.0), 12)
    assert "".join(talk.say("two")) == "".join(fresh.say("two"))
    talk.close()
    fresh.close()


def test_the_token_that_ends_an_answer_is_the_templates():
    model = make()
    chat = model.tokenizer.chat()
    assert end_tokens(model.tokenizer, chat) == (model.tokenizer.eos,)
    chat.close()
    model.tokenizer = None
    with pytest.raises(ConfigError, match="has no tokenizer"):
        Conversation(model, Sampling(), 5)


def test_a_conversation_that_does_not_fit_is_said():
    model = make(max_positions=30)
    talk = Conversation(model, Sampling(), 20)
    with pytest.raises(PromptTooLong, match="begin a new one"):
        list(talk.say("a question that takes some tokens"))
    talk.close()
