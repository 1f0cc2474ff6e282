"""Conversations: what is read, what is learnt, and how they are packed."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from interlace.base.errors import ConfigError, DataError
from interlace.data.batches import IGNORE, Packs, batches
from interlace.data.chat import Part, read_template
from interlace.data.prepare import Chat, prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.generation.conversation import end_tokens

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi", "reasoning_content": "greet"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETS = (  # keeps the reasoning of the last turn alone, as several published templates do
    "{% for m in messages %}[{{ m.role }}]"
    "{% if loop.last and m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_the_default_template(chat):
    assert chat(eos="<E>").parts(TURNS) == [
        Part("<|system|>\nBe brief.\n<|user|>\nhello\n<|assistant|>\n", False),
        Part("<think>\ngreet\n</think>\nhi<E>", True),
        Part("<|user|>\nmore\n<|assistant|>\n", False),
        Part("no<E>", True),
    ]


def test_parts_are_the_template_cut_where_an_answer_begins_and_ends(chat):
    writer = chat(CHATML)
    found = writer.parts(TURNS)
    assert "".join(p.text for p in found) == writer.render(TURNS, False)
    assert [p.text for p in found if p.learnt] == ["hi<|im_end|>\n", "no<|im_end|>\n"]
    last = writer.parts(TURNS, "last")
    assert [p.text for p in last if p.learnt] == ["no<|im_end|>\n"]
    assert "".join(p.text for p in last) == writer.render(TURNS, False)


def test_a_template_that_writes_the_past_otherwise_is_refused_but_for_the_last_turn(chat):
    with pytest.raises(DataError, match=r"writes turn 3 differently .*set data.turns = 'last'"):
        chat(FORGETS).parts(TURNS)
    assert [p.text for p in chat(FORGETS).parts(TURNS, "last") if p.learnt] == ["no"]


@pytest.mark.parametrize("last", [1, 0, None])
def test_an_answer_of_no_weight_is_not_held_to_the_rule_for_learnt_ones(chat, last):
    """Templates that leave thoughts out of earlier turns write those otherwise later, which harms no learnt token."""
    turns = [{**t, "weight": last if i == len(TURNS) - 1 else 0} for i, t in enumerate(TURNS)]
    writer = chat(FORGETS)
    found = writer.parts(turns)
    assert "".join(p.text for p in found) == writer.render(turns, False)
    assert [p.text for p in found if p.learnt] == ([] if last == 0 else ["no"])
    assert [p.text for p in writer.parts(turns, "last") if p.learnt] == ([] if last == 0 else ["no"])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_mark_of_order_is_no_letter_of_a_template(tmp_path, mark):
    (tmp_path / "t.jinja").write_bytes(mark + CHATML.encode())
    assert read_template(str(tmp_path / "t.jinja")) == CHATML


def test_a_template_of_a_stranger_cannot_reach_out(chat):
    with pytest.raises(ConfigError, match="reaches outside its sandbox"):
        chat("{{ messages.__class__.__mro__ }}").render(TURNS, False)
    with pytest.raises(ConfigError, match="took longer than"):
        chat("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}").render(TURNS, False)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def talks(count=40, words=4):
    rng = np.random.default_rng(0)
    vocabulary = ["red", "green", "blue", "one", "two", "three", "sheep", "barn"]
    rows = []
    for i in range(count):
        said = [" ".join(rng.choice(vocabulary, rng.integers(1, words + 1))) for _ in range(4)]
        turns = [{"role": r, "content": t} for r, t in zip(("user", "assistant") * 2, said, strict=True)]
        rows.append({"messages": turns[: 2 + 2 * (i % 2)], "id": i})
    return rows


@pytest.fixture
def corpus(tmp_path):
    file = write(tmp_path / "talks.jsonl", talks())
    prepare(Sources([file]), "train:300", tmp_path / "out", held_out_share=0.2)
    return Corpus.open(tmp_path / "out")


def test_only_answers_are_targets(corpus):
    split, tokenizer = corpus.splits["train"], corpus.tokenizer
    packed = batches(split, 4, 64, 0)
    assert isinstance(packed, Packs)
    seen = []
    for step in range(packed.per_epoch):
        batch = packed.batch(step)
        assert batch.segments.total == len(batch.tokens) <= 256
        for begin, size in zip(batch.segments.offsets.tolist(), list(batch.segments.lengths), strict=False):
            tokens, goals = batch.tokens[begin : begin + size], batch.targets[begin : begin + size]
            assert goals[-1] == IGNORE
            learnt = goals != IGNORE
            assert torch.equal(goals[:-1][learnt[:-1]], tokens[1:][learnt[:-1]])
            text = tokenizer.decode(goals[learnt].tolist())
            whole = tokenizer.decode(tokens.tolist())
            assert "<|user|>" not in text
            assert "<|assistant|>" not in text
            answers = [part.split("<|user|>")[0] for part in whole.split("<|assistant|>\n")[1:]]
            assert text == "".join(answers)
            assert int((goals == tokenizer.eos).sum()) == len(answers)  # where to stop is learnt too
            seen.append(whole)
    assert len(seen) == len(set(seen)) or len(seen) == len(split.borders) - 1
    assert len(seen) == len(split.borders) - 1


@pytest.mark.parametrize("name", ["train", "held_out"])
@pytest.mark.parametrize("change", [lambda s: s.pop("learnt"), lambda s: s.update(learnt=None)])
def test_one_split_without_marks_is_refused(corpus, name, change):
    """Else all that was said would be learnt."""
    path = corpus.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["splits"][name])
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="one split says what was learnt"):
        Corpus.open(corpus.folder)


def test_batches_are_a_function_of_seed_and_step(corpus):
    split = corpus.splits["train"]
    one, two = batches(split, 4, 64, 3), batches(split, 4, 64, 3)
    late = two.batch(9)
    for step in range(10):
        batch = one.batch(step)
    assert torch.equal(batch.tokens, late.tokens)
    assert torch.equal(batch.targets, late.targets)
    other = batches(split, 4, 64, 4).batch(0)
    assert not torch.equal(other.tokens[:20], one.batch(0).tokens[:20])


def test_long_conversations_are_cut_and_those_without_an_answer_left_out(corpus):
    split = corpus.splits["train"]
    short = batches(split, 2, 24, 0)
    assert max(short.sizes) <= 24
    assert (np.diff(split.borders) > 24).any()
    for step in range(short.per_epoch):
        batch = short.batch(step)
        assert (batch.targets != IGNORE).any()
    with pytest.raises(DataError, match="no conversation has an answer within its first 3 tokens"):
        batches(split, 2, 3, 0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "messages must be a list of turns"),
        ({"messages": "hello"}, "messages must be a list of turns"),
        (
            {"messages": [{"role": "assistant", "content": "a", "reasoning_content": 5}]},
            "t.jsonl:4: reasoning_content must be text, got 5",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant has content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "a turn needs a role"),
        ({"messages": [{"role": "assistant", "content": None}]}, "a turn needs a role"),
        ({"text": "a text"}, "holds documents of several kinds"),
    ],
)
def test_rows_that_are_no_conversations_are_named(row, said, tmp_path):
    file = write(tmp_path / "t.jsonl", [*talks(3), row])
    with pytest.raises(DataError) as error:
        prepare(Sources([file]), "train:300", tmp_path / "out")
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_answer_ends_in_one_token_or_training_does_not_begin(tmp_path, chat):
    file = write(tmp_path / "t.jsonl", talks())
    prepare(Sources([file]), "train:300", tmp_path / "out", chat=Chat(CHATML))
    tokenizer = Corpus.open(tmp_path / "out").tokenizer
    assert len(tokenizer.encode("<|im_end|>")) == 1  # a new tokenizer learns it
    assert end_tokens(tokenizer, chat(CHATML)) == tuple(tokenizer.encode("<|im_end|>"))
    other = CHATML.replace("im_end", "stop")
    with pytest.raises(ConfigError, match=r"ends an answer with '<\|stop\|>', .* writes as \d tokens"):
        prepare(Sources([file]), str(tmp_path / "out" / "tokenizer.json"), tmp_path / "two", chat=Chat(other))
    assert chat(CHATML.replace("im_end", "im_b")).end_of_turn() == "<|im_b|>"


def test_a_prompt_that_asks_otherwise_than_it_writes_is_shown(chat):
    asks = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    with pytest.raises(DataError, match=r"asks for an answer with '<think>\\n', and writes turn 3 otherwise"):
        chat(asks).parts(TURNS)


def test_ends_of_lines_inside_a_text_marks_of_order_and_lone_surrogates_are_read(tmp_path):
    turns = [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c\ud800"}]
    file = tmp_path / "t.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": turns}).replace("\\u2028", "\u2028").encode() + b"\n")
    (document,) = Sources([file])
    assert [t["content"] for t in document.messages] == ["a\u2028b", "c\ufffd"]


def test_the_template_goes_with_the_tokenizer(tmp_path):
    file = write(tmp_path / "t.jsonl", talks())
    prepare(Sources([file]), "train:300", tmp_path / "out", chat=Chat(CHATML))
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.tokenizer.chat_template == CHATML
    again = Tokenizer.from_file(tmp_path / "out" / "tokenizer.json")
    assert again.chat_template == CHATML
    first = corpus.splits["train"]
    text = corpus.tokenizer.decode(first.read(0, int(first.borders[1])).tolist())
    assert text.startswith("<|im_start|>user\n")
    (tmp_path / "out" / "chat_template.jinja").write_text("other")
    assert Tokenizer.from_file(tmp_path / "out" / "tokenizer.json").chat_template == "other"


def test_answers_are_encoded_as_they_will_be_made(corpus):
    """The prompt's tokens are those that are asked with: nothing is merged across the border."""
    tokenizer, split = corpus.tokenizer, corpus.splits["train"]
    writer = tokenizer.chat()
    tokens = split.read(0, int(split.borders[1])).tolist()
    learnt = split.learnt[: len(tokens)].tolist()
    prompt = tokens[: learnt.index(True)]
    question = tokenizer.decode(prompt).split("<|user|>\n")[1].split("\n<|assistant|>")[0]
    assert tokenizer.encode(writer.render([{"role": "user", "content": question}], True)) == prompt
    writer.close()


def test_turns_count_by_their_weights(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": f"yes {i}", "weight": w},
            ]
        }
        for i, w in enumerate([1, 0.25, None, 2.5] * 4)
    ]
    file = write(tmp_path / "t.jsonl", rows)
    prepare(Sources([file]), "train:300", tmp_path / "out", held_out_share=0.2)
    corpus = Corpus.open(tmp_path / "out")
    corpus.verify()
    split = corpus.splits["train"]
    seen = set()
    for start, stop in zip(split.borders, split.borders[1:], strict=False):
        number = int(re.search(r"yes (\d+)", corpus.tokenizer.decode(split.read(start, stop).tolist()))[1])
        weight = [1, 0.25, 1, 2.5][number % 4]
        assert (split.weights[start:stop] == np.where(split.learnt[start:stop], weight, 0)).all()
        seen.add(weight)
    assert seen == {1, 0.25, 2.5}
    batch = batches(split, 2, 64, seed=0).batch(0)
    learnt = batch.targets != IGNORE
    assert batch.weights.shape == batch.targets.shape
    assert (batch.weights[learnt] > 0).all()
    assert batch.counted == pytest.approx(float(batch.weights[learnt].sum()))
    assert not any(batch.weights[~learnt])


def test_pieces_with_weights_and_without_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr("interlace.data.prepare.PIECE_BYTES", 200)
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"yes {i}", **more}]}
        for i, more in enumerate([{}] * 12 + [{"weight": 0.5}] * 6)
    ]
    file = write(tmp_path / "t.jsonl", rows)
    prepare(Sources([file]), "train:300", tmp_path / "out", held_out_share=0.2)
    split = Corpus.open(tmp_path / "out").splits["train"]
    assert {float(w) for w in split.weights[split.learnt]} == {0.5, 1.0}
    assert not split.weights[~split.learnt].any()
