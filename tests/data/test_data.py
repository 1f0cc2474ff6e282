"""Text in, tokens out, batches as a function of (seed, step)."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

from interlace.base.errors import DataError
from interlace.data.batches import IGNORE, Batches
from interlace.data.prepare import prepare
from interlace.data.sources import HeldOutNames, Sources, split_point
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus


def read(*paths, **more):
    return list(Sources(list(paths), **more))


def held_out(names, share):
    chosen = HeldOutNames(share)
    for name in names:
        chosen.see(name)
    chosen.check()
    return {name for name in names if name in chosen}


def test_files_folders_jsonl_and_gzip(tmp_path, texts):
    rows = tmp_path / "rows.jsonl.gz"
    rows.write_bytes(gzip.compress(b'{"answer": "one"}\n\n{"answer": "two"}\n'))
    (texts / "deep").mkdir()
    (texts / "deep" / "a.txt").write_text("deeper")
    (texts / ".hidden").write_text("no")
    (texts / "binary.txt").write_bytes(b"a\0b")
    (texts / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (texts / "empty.txt").write_text("  \n")
    sources = Sources([texts, rows], text_field="answer")
    found = list(sources)
    assert [d.name for d in found][-3:] == ["deep/a.txt", "rows.jsonl.gz:1", "rows.jsonl.gz:3"]
    assert len(found) == 12 + 3
    assert sources.skipped.keys() == {"binary.txt", "latin.txt", "empty.txt"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"ab\0cd", "is binary"),
        ("a.txt", "caf\xe9 au lait".encode("latin-1"), "not UTF-8 (byte 3)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', ":2: has no text under 'text'"),
        ("a.jsonl", b'{"text": "x"}\nnope\n', ":2: is not JSON"),
        ("a.txt.gz", b"not gzip", "gzip"),
    ],
)
def test_bad_sources_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_missing_and_textless_sources(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no text file"):
        read(tmp_path / "void")


def test_held_out_is_by_name_alone():
    names = [f"file-{i}" for i in range(200)]
    chosen = held_out(names, 0.1)
    assert chosen == {n for n in names if split_point(n) < 0.1}
    assert chosen & set(names[:50]) == held_out(names[:50], 0.1)
    assert len(held_out(["a", "b"], 1e-9)) == 1
    assert len(held_out(["a", "b"], 1 - 1e-9)) == 1
    with pytest.raises(DataError, match="cannot be split"):
        held_out(["a"], 0.5)


def test_a_prepared_folder_says_what_is_in_it(tmp_path, texts):
    out = tmp_path / "tokens"
    manifest = prepare(Sources([texts]), "train:300", out, held_out_share=0.3)
    corpus = Corpus.open(out)
    corpus.verify()
    assert manifest == corpus.manifest
    held = held_out([d.name for d in read(texts)], 0.3)
    for name, split in corpus.splits.items():
        want = [d.text for d in read(texts) if (d.name in held) == (name == "held_out")]
        found = []
        for a, b in zip(split.borders, split.borders[1:], strict=False):
            ids = split.read(int(a), int(b)).tolist()
            assert ids[-1] == corpus.tokenizer.eos
            found.append(corpus.tokenizer.decode(ids[:-1]))
        assert found == want
        assert manifest["splits"][name]["bytes"] == sum(len(t.encode()) for t in want)


def test_the_tokenizer_never_sees_held_out_text(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    names = [f"{i}.txt" for i in range(20)]
    held = held_out(names, 0.2)
    for name in names:
        (folder / name).write_text(("zyxwv " if name in held else "hello ") * 200)
    prepare(Sources([folder]), "train:300", tmp_path / "out", held_out_share=0.2)
    vocabulary = Tokenizer.from_file(tmp_path / "out" / "tokenizer.json").fast.get_vocab()
    assert any("hello" in token for token in vocabulary)
    assert not any("zy" in token for token in vocabulary)


def test_damage_is_found(tmp_path, texts):
    out = tmp_path / "tokens"
    prepare(Sources([texts]), "train:300", out)
    shard = out / "train-00000.tokens"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-2])
    with pytest.raises(DataError, match="bytes, but the manifest says"):
        Corpus.open(out)
    shard.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(DataError, match="checksum differs"):
        Corpus.open(out).verify()
    shard.write_bytes(raw)
    Tokenizer.train(["other text"], 280).write(out)
    with pytest.raises(DataError, match="does not match the tokens"):
        Corpus.open(out)


@pytest.fixture
def prepared(tmp_path, texts):
    prepare(Sources([texts]), "train:300", tmp_path / "out")
    return tmp_path / "out"


def manifest_of(folder, change):
    found = json.loads((folder / "manifest.json").read_text())
    change(found)
    (folder / "manifest.json").write_text(json.dumps(found))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_s_file_that_was_changed_is_found(prepared, name):
    (prepared / name).write_text((prepared / name).read_text() + " ")
    with pytest.raises(DataError, match=rf"{name}: is damaged"):
        Corpus.open(prepared).verify()


@pytest.mark.parametrize("change", ["changed", "removed", "moved"])
def test_every_file_of_a_tokenizer_has_a_checksum(tmp_path, texts, change):
    source, out = tmp_path / "tokenizer", tmp_path / "out"
    (source / "additional_chat_templates").mkdir(parents=True)
    Tokenizer.train(["some text"], 300).write(source)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates/rag.jinja").write_text("{{ documents }}")
    prepare(Sources([texts]), str(source / "tokenizer.json"), out)
    Corpus.open(out).verify()
    for name in ("chat_template.jinja", "additional_chat_templates/rag.jinja"):
        before = (out / name).read_bytes()
        (out / name).unlink() if change != "changed" else (out / name).write_bytes(before + b"x")
        with pytest.raises(DataError, match=rf"{name}: (is damaged|missing)"):
            Corpus.open(out).verify()
        (out / name).write_bytes(before)


def test_a_template_that_was_put_beside_is_found(prepared):
    (prepared / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(DataError, match=r"chat_template\.jinja: was not there"):
        Corpus.open(prepared).verify()


def test_a_folder_from_before_its_tokenizer_had_checksums_opens_as_it_did(prepared):
    known = Corpus.open(prepared).fingerprint()
    manifest_of(prepared, lambda m: m.pop("files"))
    corpus = Corpus.open(prepared)
    corpus.verify()
    assert corpus.fingerprint() == known


@pytest.mark.parametrize("files", [{"../x": "0" * 64}, {"/etc/passwd": "0" * 64}, {"a": "x"}, {"a/../b": "0" * 64}, []])
def test_checksums_of_no_files_of_the_folder_are_refused(prepared, files):
    manifest_of(prepared, lambda m: m.update(files=files))
    with pytest.raises(DataError, match=r"manifest\.json: is damaged"):
        Corpus.open(prepared)


def test_marks_that_are_null_are_none(prepared):
    manifest_of(prepared, lambda m: m["splits"]["train"].update(learnt=None, learnt_tokens=None))
    corpus = Corpus.open(prepared)
    corpus.verify()
    assert corpus.splits["train"].learnt is None


def test_bad_requests_write_nothing(tmp_path, texts):
    out = tmp_path / "out"
    for tokenizer, words in (("train:12", "at least 257"), ("train:x", "train:N"), ("no.json", "no such tokenizer")):
        with pytest.raises(DataError, match=words):
            prepare(Sources([texts]), tokenizer, out)
        assert not out.exists()
    (texts / "bad.jsonl").write_text("nope")
    with pytest.raises(DataError, match="is not JSON"):
        prepare(Sources([texts]), "train:300", out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(DataError, match="not an empty folder"):
        prepare(Sources([texts]), "train:300", out)


@pytest.fixture
def corpus(tmp_path, texts):
    prepare(Sources([texts]), "train:300", tmp_path / "corpus", held_out_share=0.3)
    return Corpus.open(tmp_path / "corpus")


def test_batches_cover_an_epoch_once_and_never_cross_a_document(corpus):
    split = corpus.splits["train"]
    batches = Batches(split, rows=3, length=32, seed=5)
    everything = split.read(0, split.count).tolist()
    follows = {}
    for a, b in zip(split.borders, split.borders[1:], strict=False):
        for i in range(int(a), int(b)):
            follows[i] = everything[i + 1] if i + 1 < b else IGNORE
    seen = 0
    for step in range(batches.per_epoch):
        batch = batches.batch(step)
        assert batch.segments.total == batch.tokens.shape[0] == 96
        seen += batch.tokens.shape[0]
        for first, end in batch.segments.spans():
            tokens, targets = batch.tokens[first:end].tolist(), batch.targets[first:end].tolist()
            assert corpus.tokenizer.eos not in tokens[:-1]
            assert targets[:-1] == tokens[1:]
            assert (targets[-1] == IGNORE) == (tokens[-1] == corpus.tokenizer.eos)
    assert seen == batches.per_epoch * 96 > 0.9 * split.count - 96


def test_batches_are_a_function_of_seed_and_step(corpus):
    def make(seed):
        return Batches(corpus.splits["train"], rows=3, length=32, seed=seed)

    one, two = make(5), make(5)
    late = one.per_epoch + 2
    want = one.batch(late)
    one.batch(0)
    assert torch.equal(two.batch(late).tokens, want.tokens)
    assert torch.equal(one.batch(late).targets, want.targets)
    assert not torch.equal(make(6).batch(late).tokens, want.tokens)
    assert not torch.equal(one.batch(2).tokens, want.tokens)
    with pytest.raises(DataError, match="a batch of 999 rows"):
        Batches(corpus.splits["train"], rows=999, length=32, seed=0)


def test_tokens_are_read_across_shards(tmp_path, texts, monkeypatch):
    prepare(Sources([texts]), "train:300", tmp_path / "one")
    monkeypatch.setattr("interlace.data.prepare.SHARD_TOKENS", 1000)
    manifest = prepare(Sources([texts]), "train:300", tmp_path / "many")
    assert len(manifest["splits"]["train"]["shards"]) > 2
    one, many = (Corpus.open(tmp_path / n).splits["train"] for n in ("one", "many"))
    assert np.array_equal(one.read(0, one.count), many.read(0, many.count))


def test_streaming_text_equals_decoding_it():
    text = "naïve — 日本語 🙂 done\n" * 3
    tokenizer = Tokenizer.train([text], 260)
    pieces = list(tokenizer.stream(tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert not any("�" in p for p in pieces)
    assert int(tokenizer.byte_lengths()[torch.tensor(tokenizer.encode(text))].sum()) == len(text.encode())


def test_tokenizer_files_open_in_transformers(tmp_path):
    import transformers

    tokenizer = Tokenizer.train(["some text to learn from, some more"], 290)
    tokenizer.write(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("some text")["input_ids"] == tokenizer.encode("some text")
    assert theirs.eos_token_id == tokenizer.eos
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
