"""What stands beside tokenizer.json, damaged in every way: one sentence; and ids by their largest, not their count."""

from __future__ import annotations

import json

import pytest

import interlace
from interlace.base.errors import InterlaceError
from interlace.data.tokenizer import Tokenizer
from interlace.model.model import HybridLM
from interlace.model.presets import preset

VOCABULARY = 300


@pytest.fixture
def folder(tmp_path):
    interlace.save(HybridLM(preset("tiny-transformer").replace(vocabulary=VOCABULARY)), tmp_path / "model")
    Tokenizer.train(["some text here"], VOCABULARY).write(tmp_path / "model")
    return tmp_path / "model"


UNREADABLE = {
    "not JSON": b"{",
    "nothing": b"",
    "a list": b"[1]",
    "null": b"null",
    "text": b'"x"',
    "UTF-16": "{}".encode("utf-16"),
    "Latin-1": b'{"a": "\xe9"}',
    "too deep": b"[" * 100_000,
    "a number of 5,000 digits": b'{"model_max_length": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", list(UNREADABLE))
def test_a_damaged_config_is_one_sentence(folder, name):
    (folder / "tokenizer_config.json").write_bytes(UNREADABLE[name])
    with pytest.raises(InterlaceError) as caught:
        interlace.load(folder)
    assert "tokenizer_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


TOKENS = [5, True, ["<s>"], {}, {"content": 7}, {"content": ["x"]}, "\ud800"]


@pytest.mark.parametrize("key", ["eos_token", "bos_token", "pad_token"])
@pytest.mark.parametrize("value", TOKENS, ids=ascii)
def test_a_special_token_that_is_no_text(folder, key, value):
    (folder / "tokenizer_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(InterlaceError) as caught:
        interlace.load(folder)
    assert key in str(caught.value)
    assert "tokenizer_config.json" in str(caught.value)
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize("value", [None, {"content": None}, {"content": "<|endoftext|>", "lstrip": False}], ids=str)
def test_a_special_token_that_is_not_set_or_a_table_is_read(folder, value):
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": value, "bos_token": value}))
    assert interlace.load(folder).tokenizer.eos == 0


TEMPLATES = [3, ["x"], [None], [{"name": "default"}], [{"name": "default", "template": 3}], [{"template": "x"}], True]


@pytest.mark.parametrize("value", TEMPLATES, ids=str)
def test_a_template_that_is_no_text(folder, value):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(InterlaceError, match="chat_template"):
        interlace.load(folder)


def test_templates_by_name_are_read_as_a_list_or_a_table(folder):
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    for value in (named, {"default": "a", "tool_use": "b"}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        assert interlace.load(folder).tokenizer.chat_template == "a"


def test_a_template_file_of_bytes_that_are_no_text(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{ x }}")
    with pytest.raises(InterlaceError, match=r"chat_template\.jinja"):
        interlace.load(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_a_byte_order_mark_is_read(folder, name):
    """Editors on Windows write it."""
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert interlace.load(folder).tokenizer.eos == 0


# Ids


def add(folder, *tokens):
    """Special tokens of these (id, text) in tokenizer.json."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": i, "content": text, **usual} for i, text in tokens]
    path.write_text(json.dumps(content))


def fill(folder):
    """The folder's model again with exactly as many rows as the tokenizer has ids."""
    size = Tokenizer.from_folder(folder).vocabulary
    tokens = {p.name: p.read_bytes() for p in folder.glob("tokenizer*")}
    interlace.save(HybridLM(preset("tiny-transformer").replace(vocabulary=size)), folder)
    for name, content in tokens.items():
        (folder / name).write_bytes(content)
    return size


def test_one_pad_too_many_does_not_block_a_load(folder):
    size = fill(folder)
    add(folder, (size, "<pad>"))
    model = interlace.load(folder)
    assert "".join(interlace.generate(model, "some text", max_tokens=4)) is not None


def test_a_text_that_needs_the_row_that_is_not_there_is_refused_in_words(folder):
    size = fill(folder)
    add(folder, (size, "<pad>"))
    model = interlace.load(folder)
    with pytest.raises(InterlaceError) as caught:
        "".join(interlace.generate(model, "some <pad> text", max_tokens=4))
    assert "<pad>" in str(caught.value) or str(size) in str(caught.value)


def test_a_piece_of_the_vocabulary_itself_past_the_rows_is_refused(folder):
    """Not an added token: any text may need it."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["h"] = VOCABULARY + 7
    path.write_text(json.dumps(content))
    with pytest.raises(InterlaceError) as caught:
        interlace.load(folder)
    assert str(VOCABULARY + 7) in str(caught.value)
    assert str(VOCABULARY) in str(caught.value)


@pytest.mark.parametrize("far", [1 << 26, (1 << 32) - 1])
def test_an_id_far_away_does_not_take_memory(folder, far):
    add(folder, (far, "<far>"))
    assert interlace.load(folder).tokenizer.byte_lengths().numel() < 1 << 20  # the library numbers it anew
