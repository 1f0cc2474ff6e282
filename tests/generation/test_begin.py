"""What begins a text: a tokenizer that puts a token before texts does so for prompts, scores and training data."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scripted import script
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, processors

import interlace
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut, score_text
from interlace.generation import text as engine
from interlace.generation.conversation import Conversation
from interlace.generation.sampling import Sampling
from interlace.model.presets import preset

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdefghijklmnopqrstuvwxyzH"]
TEXT = "naïve words 🔥🔥 and more of them\n"


def template(single):
    names = [(name, PIECES.index(name)) for name in ("<s>", "</s>") if name in single]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B:1", special_tokens=names)


PREPENDS = {
    "a template": template("<s> $A"),
    "a template, both ends": template("<s> $A </s>"),
    "two steps": processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<s> $A")]),
    "as RoBERTa": processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
}
PLAIN = {"nothing": None, "an end alone": template("$A </s>"), "trimmed": processors.ByteLevel(trim_offsets=True)}


def write(folder, processor, **config):
    """A tokenizer as Llama's first two releases have it; vocabulary 287."""
    fast = Fast(models.BPE({p: i for i, p in enumerate(PIECES)}, [], unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(steps)
    fast.add_special_tokens(["<unk>", "<s>", "</s>"])
    if processor is not None:
        fast.post_processor = processor
    fast.save(str(folder / "tokenizer.json"))
    beside = {"bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(beside))
    return Tokenizer.from_file(folder / "tokenizer.json")


def model_with(tokenizer):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300, init_std=0.3)).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture
def asked(monkeypatch):
    """The ids that generation began from."""
    seen = []
    made = engine.pieces_of
    monkeypatch.setattr(engine, "pieces_of", lambda m, asked: seen.append(list(asked.prompt)) or made(m, asked))
    return seen


@pytest.mark.parametrize(
    ("processor", "config", "begins"),
    [
        *((p, {}, True) for p in PREPENDS.values()),
        *((p, {}, False) for p in PLAIN.values()),
        (None, {"add_bos_token": True}, False),  # tokenizer.json is what counts, as `transformers` reads the two
        (template("<s> $A"), {"add_bos_token": False}, True),
        (template("<s> $A"), {"bos_token": None}, True),
    ],
)
def test_a_prompt_begins_as_its_tokenizer_begins_texts(processor, config, begins, tmp_path, asked):
    tokenizer = write(tmp_path, processor, **config)
    model = model_with(tokenizer)
    for prompt in ("some words", "🔥", ""):
        "".join(interlace.generate(model, prompt, max_tokens=2, seed=0))
        ids = tokenizer.fast.encode(prompt, add_special_tokens=False).ids
        assert asked[-1] == ([1, *ids] if begins else ids or [2])


def test_a_prompt_that_begins_with_it_already_is_not_begun_twice(tmp_path, asked):
    tokenizer = write(tmp_path, template("<s> $A"))
    "".join(interlace.generate(model_with(tokenizer), "<s>words", max_tokens=2, seed=0))
    assert asked[-1].count(1) == 1


def test_ids_are_those_of_transformers(tmp_path):
    import transformers

    cases = ((template("<s> $A"), {}), (template("<s> $A"), {"add_bos_token": False}), (None, {"add_bos_token": True}))
    for processor, config in cases:
        tokenizer = write(tmp_path, processor, tokenizer_class="PreTrainedTokenizerFast", **config)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        model, seen = model_with(tokenizer), []
        model.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].tolist()))
        "".join(interlace.generate(model, "some words", max_tokens=1, seed=0))
        assert seen[0] == theirs("some words")["input_ids"]


def test_a_conversation_is_begun_by_its_template_alone(tmp_path):
    tokenizer = write(tmp_path, template("<s> $A"))
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    model, seen = model_with(tokenizer), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].tolist()))
    talk = Conversation(model, Sampling(0.0), 2)
    "".join(talk.say("words"))
    talk.close()
    assert seen[0].count(1) == 1


@pytest.mark.parametrize("begins", [True, False])
def test_a_scored_text_begins_so_too_and_its_bytes_are_its_own(begins, tmp_path):
    tokenizer = write(tmp_path, template("<s> $A") if begins else None)
    model, file = model_with(tokenizer), tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    ids = ([1] if begins else []) + tokenizer.fast.encode(TEXT, add_special_tokens=False).ids
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor(ids))[0].double(), -1)
    nats = -float(log_p[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())
    size = len(TEXT.encode())  # without a beginning the first token, a space that is not in the text, is not scored
    assert score_text(model, file) == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_a_text_that_is_cut_weighs_what_was_read(tmp_path):
    tokenizer = write(tmp_path, template("<s> $A"))
    model, file = model_with(tokenizer), tmp_path / "text.txt"
    file.write_text("abc🔥🔥", encoding="utf-8")
    ids = [1, *tokenizer.fast.encode("abc🔥🔥", add_special_tokens=False).ids][:7]
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor(ids))[0].double(), -1)
    nats = -float(log_p[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum())
    assert ids[-2:] == [PIECES.index("<0xF0>"), PIECES.index("<0x9F>")]
    assert score_text(model, file, most_tokens=7) == pytest.approx(nats / math.log(2) / 5, rel=1e-5)


@pytest.mark.parametrize("begins", [True, False])
def test_documents_begin_so_too(begins, tmp_path, texts):
    write(tmp_path, template("<s> $A") if begins else None)
    prepare(Sources([texts]), str(tmp_path / "tokenizer.json"), tmp_path / "out", held_out_share=0.4)
    corpus = Corpus.open(tmp_path / "out")
    split = corpus.splits["held_out"]
    for first, end in zip(split.borders, split.borders[1:], strict=False):
        ids = split.read(int(first), int(end)).tolist()
        assert ids.count(1) == int(begins) == int(ids[0] == 1)
        assert ids[-1] == 2


def test_held_out_bytes_are_those_of_the_texts(tmp_path, texts):
    """Each document begun by its token, in one row: every byte of it is scored, and none that is not there."""
    write(tmp_path, template("<s> $A"))
    for file in texts.iterdir():
        file.write_text("naïve 🔥🔥 words")
    prepare(Sources([texts]), str(tmp_path / "tokenizer.json"), tmp_path / "out", held_out_share=0.4)
    corpus = Corpus.open(tmp_path / "out")
    split = corpus.splits["held_out"]
    size = int(split.borders[1])
    held = HeldOut(corpus, size, size, rows=1)
    scores = held.score(model_with(corpus.tokenizer))
    scored = size - 2  # all but the token that begins it and the one that ends it
    bits = scores["held_out_loss"] / math.log(2) * scored
    assert bits / scores["held_out_bits_per_byte"] == pytest.approx(len("naïve 🔥🔥 words".encode()), rel=1e-5)


def test_a_text_that_goes_on_keeps_its_space(tmp_path, monkeypatch):
    """A decoder that strips the first space of a text does so at its start, and not where a prompt ends."""
    tokenizer = write(tmp_path, template("<s> $A"))
    made = tokenizer.fast.encode("words", add_special_tokens=False).ids
    script(monkeypatch, made)
    assert "".join(interlace.generate(model_with(tokenizer), "some", max_tokens=len(made))) == " words"


def test_what_begins_a_text_is_kept_by_save(tmp_path):
    model = model_with(write(tmp_path, template("<s> $A")))
    interlace.save(model, tmp_path / "saved")
    again, seen = interlace.load(tmp_path / "saved"), []
    again.register_forward_pre_hook(lambda _, args: seen.append(args[0].tolist()))
    "".join(interlace.generate(again, "words", max_tokens=1, seed=0))
    assert seen[0][0] == 1
