"""Tokenizer files as strangers hand them: settings inside that change what is read, damage, ids with holes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

import interlace
from interlace.base.errors import CheckpointError, ConfigError, DataError, InterlaceError
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.evaluate.bits_per_byte import HeldOut
from interlace.model.presets import preset

TEXT = "the quick brown fox jumps over the lazy dog "


def trained(size=280):
    return Tokenizer.train([TEXT * 3], size)


def rewritten(path, change):
    """tokenizer.json with a change made to its JSON."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    change(whole)
    path.write_text(json.dumps(whole), encoding="utf-8")
    return Tokenizer.from_file(path)


def truncated(fast):
    fast.enable_truncation(6, stride=2)


def padded(fast):
    fast.enable_padding(length=512, pad_id=0, pad_token="<|endoftext|>")


def padded_to_multiples(fast):
    fast.enable_padding(pad_to_multiple_of=8)


@pytest.mark.parametrize("leave", [truncated, padded, padded_to_multiples, lambda f: (truncated(f), padded(f))])
def test_what_a_file_was_saved_with_cuts_and_fills_nothing(leave, tmp_path, texts):
    plain = trained()
    want = plain.encode(TEXT * 9)
    leave(plain.fast)
    plain.fast.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert found.encode(TEXT * 9) == want
    assert found.encode_batch([TEXT * 9, "the"]) == [want, trained().encode("the")]
    prepare(Sources([texts]), str(tmp_path / "tokenizer.json"), tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    first = corpus.splits["train"]
    ids = first.read(0, int(first.borders[1])).tolist()
    assert corpus.tokenizer.decode(ids[:-1]) in [p.read_text() for p in texts.iterdir()]


def test_merges_are_not_left_out_by_chance(tmp_path):
    """A file saved with dropout would cut a text anew each time."""
    plain = trained()
    plain.fast.model.dropout = 0.9
    plain.fast.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert all(found.encode(TEXT) == trained().encode(TEXT) for _ in range(20))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "[]",
        "null",
        "3",
        '"text"',
        "[" * 100_000,
        '{"eos_token": {}}',
        '{"eos_token": 5}',
        '{"eos_token": ["</s>"]}',
        '{"bos_token": {"content": 7}}',
        '{"chat_template": [{"template": "x"}, 3]}',
        '{"chat_template": [{"name": "default"}]}',
        '{"chat_template": 5}',
        b"\xff\xfe{}",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_a_broken_tokenizer_config_is_named_in_words(text, tmp_path):
    trained().write(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ['{"eos_token": null, "bos_token": null}', "{}", '{"chat_template": null}'])
def test_a_tokenizer_config_that_says_little_is_no_fault(text, tmp_path):
    trained().write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").eos == 0


def test_a_mark_of_order_before_a_config_is_read_over(tmp_path):
    trained().write(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").eos == 0


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("chat_template.jinja", b"\xff\xfe{{ a }}", r"chat_template\.jinja"),
        ("tokenizer.json", b"\xff\xfe{}", r"tokenizer\.json"),
        ("tokenizer.json", b"{}", r"tokenizer\.json"),
        ("tokenizer.json", b"[" * 100_000, r"tokenizer\.json"),
    ],
)
def test_damage_beside_it_is_named_in_words(name, raw, words, tmp_path):
    trained().write(tmp_path)
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=words):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("given", [{"default": "x", "tool_use": "y"}, [{"name": "default", "template": "x"}], "x"])
def test_templates_by_name_are_read_in_each_of_their_forms(given, tmp_path):
    trained().write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").chat_template == "x"


def test_a_broken_config_beside_a_checkpoint_is_one_sentence_to_load(tmp_path):
    saved(tmp_path, trained(), 300)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InterlaceError, match=r"tokenizer_config\.json"):
        interlace.load(tmp_path)


# Ids


def holed(folder, largest):
    """A tokenizer whose last entry has a number far behind the others."""
    trained().write(folder)
    path = folder / "tokenizer.json"
    return rewritten(path, lambda whole: whole["model"]["vocab"].__setitem__(*last(whole["model"]["vocab"], largest)))


def last(vocabulary, largest):
    return max(vocabulary, key=vocabulary.get), largest


def saved(folder, tokenizer, vocabulary):
    config = preset("tiny-hybrid").replace(vocabulary=vocabulary)
    model = interlace.HybridLM(config)
    model.tokenizer = tokenizer
    interlace.save(model, folder)
    return model


def test_a_vocabulary_reaches_to_its_largest_id(tmp_path):
    tokenizer = holed(tmp_path, 400)
    assert tokenizer.fast.get_vocab_size() == 280
    assert tokenizer.vocabulary == 401
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (401,)
    assert int(lengths[350]) == 0
    assert int(lengths[400]) > 0


def test_texts_with_an_id_behind_a_hole_are_scored(tmp_path, texts):
    holed(tmp_path, 400)
    prepare(Sources([texts]), str(tmp_path / "tokenizer.json"), tmp_path / "out", held_out_share=0.4)
    corpus = Corpus.open(tmp_path / "out")
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=corpus.tokenizer.vocabulary))
    assert np.isfinite(HeldOut(corpus, 32, 640).score(model)["held_out_bits_per_byte"])


def test_ids_past_two_bytes_are_written_whole(tmp_path, texts):
    tokenizer = holed(tmp_path, 70_000)
    prepare(Sources([texts]), str(tmp_path / "tokenizer.json"), tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.manifest["dtype"] == "uint32"
    split = corpus.splits["train"]
    text = tokenizer.decode(split.read(0, int(split.borders[1])).tolist())
    assert text in [p.read_text() for p in texts.iterdir()]


@pytest.mark.parametrize("extra", [["<pad>"], ["<pad>", "<image>", "<tool>"]])
def test_an_added_token_too_many_does_not_block_a_load(extra, tmp_path):
    tokenizer = trained()
    tokenizer.fast.add_special_tokens(extra)
    saved(tmp_path, tokenizer, 280)
    model = interlace.load(tmp_path)
    assert model.tokenizer.vocabulary == 280 + len(extra)
    made = "".join(interlace.generate(model, "the quick", max_tokens=5, seed=0))
    assert isinstance(made, str)


def test_a_text_that_holds_a_token_the_model_lacks_is_said(tmp_path):
    tokenizer = trained()
    tokenizer.fast.add_tokens([AddedToken("<image>", special=True)])
    saved(tmp_path, tokenizer, 280)
    model = interlace.load(tmp_path)
    with pytest.raises(ConfigError, match="<image>"):
        list(interlace.generate(model, "the <image>", max_tokens=2))


def test_a_tokenizer_whose_own_entries_do_not_fit_is_refused(tmp_path):
    saved(tmp_path, trained(290), 280)
    with pytest.raises(CheckpointError, match="do not belong together"):
        interlace.load(tmp_path)


def test_an_id_far_behind_a_hole_is_refused_and_no_index_error(tmp_path):
    """280 entries, as many as the model has rows, but one of them is number 400."""
    folder = tmp_path / "model"
    saved(folder, trained(), 280)
    holed(folder, 400)
    with pytest.raises(CheckpointError, match="400"):
        interlace.load(folder)


def test_a_model_with_more_rows_than_the_tokenizer_has_ids_decodes_them_as_nothing():
    tokenizer = trained()
    ids = [*tokenizer.encode("the"), 299, 10_000, *tokenizer.encode(" fox")]
    assert "".join(tokenizer.stream(ids)) == "the fox"
    assert torch.is_tensor(tokenizer.byte_lengths())
