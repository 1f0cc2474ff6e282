"""Ids to text and to bytes for every kind of tokenizer: what streams is what decodes, and weighs what it writes."""

from __future__ import annotations

import json
import random

import pytest
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast

from interlace.data.chat import ChatTemplate
from interlace.data.prepare import Chat, prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
LETTERS = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!?,.<>|/", "▁Hi", "▁the", "▁▁", "th"]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
TEXTS = ["Hi🔥🔥!", "Hi 🔥 the naïve café", "the", "日本語 Hi", "two  spaces\nand a line", "🔥"]


def finish(fast, **parts):
    for name, part in parts.items():
        setattr(fast, name, part)
    fast.add_special_tokens(SPECIAL)
    return Tokenizer(fast, fast.token_to_id("</s>"))


def ids_of(pieces):
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def byte_level(prefix=False):
    model = Tokenizer.train(TEXTS, 270)
    model.fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    model.fast.add_special_tokens(SPECIAL)
    return model


def llama(*after):
    fast = Fast(models.BPE(ids_of([*SPECIAL, *BYTES, *LETTERS]), [("t", "h")], unk_token="<unk>", byte_fallback=True))
    blanks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return finish(fast, normalizer=blanks, decoder=decoders.Sequence([*LLAMA, *after]))


def metaspace(scheme):
    fast = Fast(models.BPE(ids_of([*SPECIAL, *BYTES, *LETTERS]), [], unk_token="<unk>", byte_fallback=True))
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", scheme)])
    return finish(fast, pre_tokenizer=pre_tokenizers.Metaspace("▁", scheme), decoder=decoder)


def unigram():
    pieces = dict.fromkeys([*SPECIAL, *BYTES, *LETTERS])
    fast = Fast(models.Unigram([(p, 0.0 if p in SPECIAL else -1.0 - len(p) / 9) for p in pieces], 0, True))
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return finish(fast, pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoder)


def word_piece(cleanup):
    letters = [c for c in LETTERS if c.isascii()] + [*"ïé日本語🔥"]
    fast = Fast(models.WordPiece(ids_of([*SPECIAL, *letters, *("##" + c for c in letters)]), unk_token="<unk>"))
    return finish(fast, pre_tokenizer=pre_tokenizers.Whitespace(), decoder=decoders.WordPiece("##", cleanup))


def words():
    seen = [w for text in TEXTS for w, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]
    fast = Fast(models.WordLevel(ids_of([*SPECIAL, *seen]), unk_token="<unk>"))
    return finish(fast, pre_tokenizer=pre_tokenizers.Whitespace())


def letters(**parts):
    seen = [*SPECIAL, *sorted(set("".join(TEXTS)) | set("▁x"))]
    fast = Fast(models.BPE(ids_of(seen), [], unk_token="<unk>"))
    return finish(fast, **parts)


def ends_of_words():
    seen = sorted({c for c in "".join(TEXTS) if not c.isspace()})
    vocabulary = ids_of([*SPECIAL, *seen, *(c + "</w>" for c in seen)])
    fast = Fast(models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    return finish(fast, pre_tokenizer=pre_tokenizers.Whitespace(), decoder=decoders.BPEDecoder())


def decoded_by(*parts):
    return lambda: letters(decoder=decoders.Sequence(list(parts)))


LOSSLESS = {
    "byte level": byte_level,
    "byte level, a space before": lambda: byte_level(True),
    "byte fallback, one space stripped": lambda: llama(decoders.Strip(" ", 1, 0)),
    "byte fallback, nothing stripped": llama,
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "unigram with byte fallback": unigram,
    "letters": lambda: letters(decoder=decoders.Fuse()),
}
KINDS = {
    **LOSSLESS,
    "word pieces": lambda: word_piece(True),
    "word pieces, raw": lambda: word_piece(False),
    "words": words,
    "ends of words": ends_of_words,
    "letters apart": letters,
    "repeats once": decoded_by(decoders.CTC("<unk>", "|")),
    "two spaces stripped": lambda: llama(decoders.Strip(" ", 2, 0)),
    "replaced across tokens": decoded_by(decoders.Fuse(), decoders.Replace("th", "TH")),
    "replaced by a pattern": decoded_by(decoders.Replace(Regex("[aeiou]"), "_"), decoders.Fuse()),
    "stripped each": decoded_by(decoders.Strip("H", 1, 0), decoders.Fuse()),
    "sequence in a sequence": lambda: llama(decoders.Sequence([decoders.Fuse()])),
}


def whole(tokenizer, ids):
    return tokenizer.fast.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_joined_pieces_are_the_decoding_of_all_ids(kind):
    tokenizer, draw = KINDS[kind](), random.Random(0)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert "".join(tokenizer.stream(ids)) == whole(tokenizer, ids)
    for _ in range(150):  # what a model draws: runs of bytes, halves of characters, special tokens anywhere
        pool = draw.choice((range(tokenizer.vocabulary), [*tokenizer.encode("Hi🔥é"), tokenizer.eos]))
        ids = draw.choices(pool, k=draw.randint(0, 24))
        assert "".join(tokenizer.stream(ids)) == whole(tokenizer, ids), ids


@pytest.mark.parametrize("kind", LOSSLESS)
def test_no_piece_holds_half_a_character(kind):
    tokenizer = LOSSLESS[kind]()
    for text in TEXTS:
        pieces = list(tokenizer.stream(tokenizer.encode(text)))
        assert "".join(pieces).lstrip(" ") == text
        assert not any("�" in piece for piece in pieces)
        assert all(pieces)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback, one space stripped", "unigram with byte fallback"])
def test_a_special_token_between_the_bytes_of_a_character_does_not_break_it(kind):
    tokenizer = LOSSLESS[kind]()
    fire = tokenizer.encode("a🔥a")[-5:]
    cut = [fire[0], fire[1], tokenizer.eos, *fire[2:]]
    assert "".join(tokenizer.stream(cut)) == whole(tokenizer, cut)
    assert "🔥" in "".join(tokenizer.stream(cut))


def test_a_run_of_bytes_that_turns_out_wrong_is_written_as_it_is_decoded():
    """The library reads a run of byte tokens together: one that is no UTF-8 makes all of it signs of a fault."""
    tokenizer = llama(decoders.Strip(" ", 1, 0))
    ids = [tokenizer.fast.token_to_id(t) for t in ("▁Hi", "<0xC3>", "<0xA9>", "<0xFF>", "a")]
    assert "".join(tokenizer.stream(ids)) == whole(tokenizer, ids) == "Hi���a"


def test_a_sign_of_a_fault_that_a_model_wrote_is_text():
    tokenizer = byte_level()
    ids = tokenizer.encode("a� b�")
    assert "".join(tokenizer.stream(ids)) == "a� b�"


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_piece_is_shown_before_the_next_id_is_asked_for(kind):
    tokenizer = LOSSLESS[kind]()
    ids, taken = tokenizer.encode("the the the"), []
    pieces = tokenizer.stream(taken.append(i) or i for i in ids)
    shown = ""
    for piece in pieces:
        shown += piece
        assert shown == whole(tokenizer, taken)


def test_a_long_run_of_ids_is_streamed_in_linear_time(monkeypatch):
    tokenizer, asked = llama(decoders.Strip(" ", 1, 0)), []
    decode = Tokenizer.decode
    monkeypatch.setattr(
        Tokenizer, "decode", lambda self, ids, *more: asked.append(len(ids)) or decode(self, ids, *more)
    )
    ids = tokenizer.encode("🔥" * 500 + " the" * 500)
    assert "".join(tokenizer.stream(ids)) == "🔥" * 500 + " the" * 500
    assert sum(asked) <= 8 * len(ids)


# Bytes


@pytest.mark.parametrize("kind", LOSSLESS)
def test_byte_lengths_add_up_to_the_text(kind):
    tokenizer = LOSSLESS[kind]()
    lengths = tokenizer.byte_lengths()
    for text in ("🔥🔥", "naïve café", "the 日本語", "Hi", "two  spaces\n"):
        anchor, ids = tokenizer.encode("x"), tokenizer.encode("x" + text)
        assert ids[: len(anchor)] == anchor
        assert int(lengths[torch.tensor(ids[len(anchor) :])].sum()) == len(text.encode())


@pytest.mark.parametrize(
    ("kind", "token", "size"),
    [
        ("byte fallback, one space stripped", "<0xF0>", 1),
        ("byte fallback, one space stripped", "▁Hi", 3),
        ("unigram with byte fallback", "<0x0A>", 1),
        ("metaspace always", "▁▁", 2),
        ("word pieces", "##a", 1),
        ("word pieces", "é", 3),  # with the space before a word
        ("words", "naïve", 7),
        ("ends of words", "ï</w>", 3),
        ("letters", "語", 3),
        ("letters apart", "語", 4),
        ("byte level", "Ġ", 1),
        ("byte level", "<s>", 0),
        ("words", "<unk>", 0),
    ],
)
def test_a_token_weighs_what_it_adds_to_a_text(kind, token, size):
    tokenizer = KINDS[kind]()
    assert int(tokenizer.byte_lengths()[tokenizer.fast.token_to_id(token)]) == size


@pytest.mark.parametrize("kind", ["byte level", "byte fallback, one space stripped"])
def test_added_tokens_that_are_not_special_are_text(kind):
    tokenizer = LOSSLESS[kind]()
    tokenizer.fast.add_tokens([AddedToken("        ", normalized=False), AddedToken("<tag>", normalized=False)])
    lengths = tokenizer.byte_lengths()
    assert int(lengths[tokenizer.fast.token_to_id("        ")]) == 8
    assert int(lengths[tokenizer.fast.token_to_id("<tag>")]) == 5


# Conversations


@pytest.mark.parametrize("kind", [kind for kind in LOSSLESS if kind != "letters"])
def test_a_conversation_is_encoded_as_one_text(kind, tmp_path, request):
    """Parts that are encoded apart gain no spaces, and what an answer is asked with is what it was learnt after."""
    LOSSLESS[kind]().fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    turns = [[("user", f"the {c}"), ("assistant", f"Hi {c}")] for c in "abcdefgh"]
    rows = [[{"role": role, "content": text} for role, text in pair] for pair in turns]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    template = (
        "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>\n{% endif %}"
    )
    prepare(Sources([file]), str(tmp_path / "tokenizer.json"), tmp_path / "out", chat=Chat(template))
    corpus, writer = Corpus.open(tmp_path / "out"), ChatTemplate(template, "</s>")
    request.addfinalizer(writer.close)
    split, tokenizer = corpus.splits["train"], corpus.tokenizer
    asked = {tuple(tokenizer.encode(writer.render(row[:1], True))) for row in rows}
    written = {tokenizer.fast.decode(tokenizer.encode(writer.render(row, False)), False) for row in rows}
    for begin, end in zip(split.borders, split.borders[1:], strict=False):
        ids, learnt = split.read(int(begin), int(end)).tolist(), split.learnt[int(begin) : int(end)].tolist()
        assert tokenizer.fast.decode(ids, False) in written
        assert tuple(ids[: learnt.index(True)]) in asked
