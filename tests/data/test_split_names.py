"""Documents of one name from several sources, and splits that would hold nothing."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers

from interlace.base.errors import DataError
from interlace.data.prepare import prepare
from interlace.data.sources import Sources, split_point
from interlace.data.tokens import Corpus


def folder(path, *names, text="hello there"):
    path.mkdir(parents=True)
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(f"{text} {path.name} {name}\n")
    return path


def names(*paths):
    return [d.name for d in Sources(list(paths))]


def test_two_files_of_one_name_are_two_documents_to_the_split(tmp_path):
    a, b = folder(tmp_path / "a", "book.txt"), folder(tmp_path / "b", "book.txt")
    assert names(a, b) == ["book.txt", "book.txt@2"]
    manifest = prepare(Sources([a, b]), "train:300", tmp_path / "out")
    assert {name: s["documents"] for name, s in manifest["splits"].items()} == {"train": 1, "held_out": 1}
    Corpus.open(tmp_path / "out").verify()


def test_only_the_names_that_repeat_are_changed(tmp_path):
    a = folder(tmp_path / "a", "one.txt", "deep/two.txt")
    b = folder(tmp_path / "b", "two.txt", "deep/two.txt", "three.txt")
    assert names(a, b) == ["deep/two.txt", "one.txt", "deep/two.txt@2", "three.txt", "two.txt"]
    assert names(a) + names(b) == ["deep/two.txt", "one.txt", "deep/two.txt", "three.txt", "two.txt"]


def test_lone_files_rows_and_parts_of_one_name(tmp_path):
    a, b = folder(tmp_path / "a", "book.txt"), folder(tmp_path / "b", "book.txt")
    (a / "rows.jsonl").write_text('{"text": "one"}\n')
    (b / "rows.jsonl").write_text('{"text": "two"}\n')
    (b / "book.txt").write_text("a line of a book\n" * 3000)
    assert names(a / "rows.jsonl", b / "rows.jsonl") == ["rows.jsonl:1", "rows.jsonl@2:1"]
    found = names(a / "book.txt", b / "book.txt")
    assert found[:3] == ["book.txt", "book.txt@2#00000", "book.txt@2#00001"]
    assert len(set(found)) == len(found)


def test_the_same_file_twice_stays_on_one_side(tmp_path):
    """Else what is held out would be trained on."""
    a, b = folder(tmp_path / "a", "book.txt"), folder(tmp_path / "b", "other.txt")
    assert names(a, a / "book.txt") == ["book.txt", "book.txt"]
    (tmp_path / "again").symlink_to(a)
    assert names(a, tmp_path / "again", b) == ["book.txt", "book.txt", "other.txt"]


def test_a_skipped_file_is_noted_under_the_name_that_tells_it_apart(tmp_path):
    a, b = folder(tmp_path / "a", "x.bin", "x.txt"), folder(tmp_path / "b", "x.bin", "y.txt")
    for path in (a, b):
        (path / "x.bin").write_bytes(b"\0")
    sources = Sources([a, b])
    assert len(list(sources)) == 2
    assert sources.skipped.keys() == {"x.bin", "x.bin@2"}


def one_name(tmp_path):
    """Two documents that the split cannot tell apart."""
    a = folder(tmp_path / "a", "book.txt")
    return Sources([a, a / "book.txt"]), "train:300"


def empty_row(tmp_path):
    """Rows of which only one gives tokens, with a tokenizer that knows no other word."""
    fast = Fast(models.WordLevel({"<unk>": 0, "hello": 1}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "tokenizer.json"))
    rows = sorted(("rows.jsonl:1", "rows.jsonl:2"), key=split_point)
    texts = [" " if name == rows[0] else "hello" for name in ("rows.jsonl:1", "rows.jsonl:2")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Sources([tmp_path / "rows.jsonl"]), str(tmp_path / "tokenizer.json")


def empty_train_row(tmp_path):
    sources, tokenizer = empty_row(tmp_path)
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[::-1]) + "\n")
    return sources, tokenizer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (one_name, "leaves no document to train"),
        (empty_row, "leaves 1 documents without a token to held_out"),
        (empty_train_row, "leaves 1 documents without a token to train"),
    ],
)
def test_a_split_without_tokens_is_an_error_and_nothing_is_written(tmp_path, make, words):
    sources, tokenizer = make(tmp_path)
    with pytest.raises(DataError, match=f"held_out: .*{words}"):
        prepare(sources, tokenizer, tmp_path / "out", held_out_share=1e-9)
    assert not (tmp_path / "out").exists()


def test_a_document_without_tokens_begins_no_shard(tmp_path):
    sources, tokenizer = empty_row(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": " "}\n' * 20 + '{"text": "hello hello"}\n' * 20)
    manifest = prepare(sources, tokenizer, tmp_path / "out", held_out_share=0.5)
    assert sum(s["documents"] for s in manifest["splits"].values()) == 40
    assert sum(s["tokens"] for s in manifest["splits"].values()) == 40
    Corpus.open(tmp_path / "out").verify()
