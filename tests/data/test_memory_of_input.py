"""Memory that is bounded whatever comes in: packed bombs, long rows, large files, many small ones, long texts."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from interlace.base.errors import DataError
from interlace.data.encode import in_batches
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokens import Corpus
from interlace.text.rows import ROW_BYTES

MEGA = 1 << 20
LONGEST = 2 * MEGA  # characters that a document may have, and more than is needed to keep what belongs together
PEAK = """
import sys
from pathlib import Path
from interlace.base.errors import InterlaceError
from interlace.data.prepare import prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.text.rows import read_rows
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024
one = Path(sys.argv[1])
before = peak()
try:
    {work}
except InterlaceError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def peak_mebibytes(work, path):
    """By how much a process' memory grew at its peak while it did the work; (MiB, what it refused)."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(work=work), str(path)], capture_output=True, text=True, check=True
    )
    return float(done.stdout), done.stderr


READ = "[None for document in Sources([one])]"
PREPARE = "prepare(Sources([one]), 'train:300', one.with_name('out'))"


def bomb(path, before, member, times, after):
    """A gzip file of many members: written in no time, whatever it unpacks to."""
    packed = gzip.compress(member)
    path.write_bytes(gzip.compress(before) + packed * times + gzip.compress(after))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "member", "after"),
    [
        ("lines.txt.gz", b"", b"some words\n" * 95_325, b""),
        ("line.txt.gz", b"", b"a" * MEGA, b""),
        ("words.txt.gz", b"", b"word " * 209_715, b""),
        ("wide.txt.gz", b"", "🔥".encode() * (MEGA // 4), b""),
        ("line.jsonl.gz", b'{"text": "', b"a" * MEGA, b'"}\n'),
        ("spaces.jsonl.gz", b'{"text": "a"}\n', b" " * MEGA, b'\n{"text": "b"}\n'),
    ],
)
def test_reading_takes_less_than_what_is_read(tmp_path, name, before, member, after):
    """192 MiB: of texts little is held at a time; of JSONL one row, and a row that is too long is refused."""
    path = bomb(tmp_path / name, before, member, 192, after)
    grown, said = peak_mebibytes(READ, path)
    assert grown < (192 if "jsonl" in name else 64)
    assert not said or f"{name}:1" in said or f"{name}:2" in said


@pytest.mark.slow
def test_a_row_of_a_distillation_is_bounded_too(tmp_path):
    path = bomb(tmp_path / "rows.jsonl.gz", b'{"question": "', b"a" * MEGA, 192, b'"}\n')
    grown, said = peak_mebibytes("[None for row in read_rows(one)]", path)
    assert grown < 192
    assert "rows.jsonl.gz:1" in said


WORDS = "the quick brown fox jumps over the lazy dog and "


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["row", "file", "folder", "line", "rows"])
def test_preparing_grows_with_no_input(tmp_path, kind):
    """6 MiB in one row, one file, one file of a folder, one line, or 120,000 rows."""
    text = WORDS * (6 * MEGA // len(WORDS))
    if kind == "row":
        path = tmp_path / "one.jsonl"
        path.write_text(json.dumps({"text": text}) + '\n{"text": "b"}\n')
    elif kind == "rows":
        path = tmp_path / "one.jsonl"
        path.write_text('{"text": "a"}\n' * 120_000)
    elif kind == "folder":
        path = tmp_path / "one"
        path.mkdir()
        (path / "a.txt").write_text(text.replace("dog and ", "dog.\n"))
        (path / "b.txt").write_text("b")
    else:
        path = tmp_path / "one.txt"
        path.write_text(text if kind == "line" else text.replace("dog and ", "dog.\n"))
    grown, said = peak_mebibytes(PREPARE, path)
    assert said == ""
    assert grown < 384  # 200 to 270 by the allocator of threads; 9.8 GiB for 60 MB once, when all was encoded at once


# --- where a text is cut -----------------------------------------------------------------------------------------


def lines(size):
    return "".join(f"line {i} of a long file\n" + "\n" * (i % 50 == 0) for i in range(size // 22))


def test_a_large_file_of_a_folder_is_cut_at_ends_of_lines_and_small_ones_are_as_before(tmp_path):
    text = lines(5 * MEGA)
    (tmp_path / "large.txt").write_text(text)
    (tmp_path / "small.txt").write_text(lines(MEGA // 2))
    found = list(Sources([tmp_path]))
    large = [d for d in found if d.name.startswith("large.txt")]
    assert [d.name for d in found if d not in large] == ["small.txt"]
    assert len(large) > 1
    assert len({d.name for d in large}) == len(large)
    assert "".join(d.text for d in large) == text
    assert all(d.text.endswith("\n") for d in large)
    assert max(len(d.text) for d in large) <= LONGEST


LONG = {"a": "a" * 5 * MEGA, "words": "word " * MEGA, "wide": "🔥" * 3 * MEGA, "line": "\n" + "x" * 5 * MEGA + "\n"}


@pytest.mark.parametrize("kind", list(LONG))
@pytest.mark.parametrize("name", ["one.txt", "one.txt.gz", "one.jsonl", "folder/one.txt"])
def test_a_text_without_ends_of_lines_is_cut_as_well_and_loses_nothing(tmp_path, name, kind):
    text = LONG[kind]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    raw = json.dumps({"text": text}, ensure_ascii=False) + "\n" if path.suffix == ".jsonl" else text
    path.write_bytes(gzip.compress(raw.encode(), 1) if path.suffix == ".gz" else raw.encode())
    found = [d.text for d in Sources([tmp_path / name.partition("/")[0]])]
    assert "".join(found) == text
    assert len(found) > 1
    assert max(map(len, found)) <= LONGEST
    if kind == "words":
        assert all(part.endswith(" ") for part in found)


def test_a_long_row_keeps_its_line_in_the_names_of_its_parts(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' + json.dumps({"text": lines(5 * MEGA)}) + "\n")
    names = [d.name for d in Sources([tmp_path / "rows.jsonl"])]
    assert names[0] == "rows.jsonl:1"
    assert len(names) > 2
    assert all(n.startswith("rows.jsonl:2") for n in names[1:])


def test_a_lone_file_is_cut_as_it_was(tmp_path):
    """Names and borders of prepared text must not move: they say which documents are held out."""
    text = lines(3 * MEGA)
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    found = list(Sources([tmp_path / "book.txt"]))
    start = 0
    for number, document in enumerate(found):
        assert document.name == f"book.txt#{number:05}"
        stop = text.find("\n", start + 16_384) + 1
        stop = stop if stop and len(text) - stop > 8192 else len(text)
        assert document.text == text[start:stop]
        start = stop
    assert start == len(text)


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
def test_a_mark_of_order_and_windows_ends_of_lines_stay_what_they_were(tmp_path, ends):
    text = lines(3 * MEGA).replace("\n", ends)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "".join(d.text for d in Sources([tmp_path / "a"])) == text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"fine\n" * MEGA + b"caf\xe9", f"not UTF-8 (byte {5 * MEGA + 3})"),
        (b"fine\n" * MEGA + "é".encode()[:1], "not UTF-8"),
        (b" \n" * 2 * MEGA, "is empty"),
        (b"ab\0cd" + b"fine\n" * MEGA, "is binary"),
    ],
)
def test_a_large_file_that_cannot_be_used_is_skipped_whole(tmp_path, raw, words):
    """Nothing of it is read before its last byte was looked at."""
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "b.txt").write_text("b")
    sources = Sources([tmp_path])
    assert [d.name for d in sources] == ["b.txt"]
    assert words in sources.skipped["a.txt"]


def test_a_gzip_file_that_is_cut_off_is_skipped_whole(tmp_path):
    packed = gzip.compress(lines(5 * MEGA).encode())
    (tmp_path / "a.txt.gz").write_bytes(packed[:-20])
    (tmp_path / "b.txt").write_text("b")
    sources = Sources([tmp_path])
    assert [d.name for d in sources] == ["b.txt"]
    assert "gzip" in sources.skipped["a.txt.gz"]


@pytest.mark.slow
def test_what_is_prepared_of_a_large_file_is_its_text(tmp_path):
    (tmp_path / "t").mkdir()
    text = lines(2 * MEGA)
    for name in ("a.txt", "b.txt"):
        (tmp_path / "t" / name).write_text(text)
    prepare(Sources([tmp_path / "t"]), "train:600", tmp_path / "out", held_out_share=0.5)
    corpus, size = Corpus.open(tmp_path / "out"), 0
    for split in corpus.splits.values():
        for a, b in zip(split.borders, split.borders[1:], strict=False):
            part = corpus.tokenizer.decode(split.read(int(a), int(b) - 1).tolist())
            assert part in text
            size += len(part)
    assert size == 2 * len(text)


def test_a_conversation_that_is_too_long_is_named(tmp_path):
    turns = [{"role": "user", "content": "hello " * 12 * MEGA}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        list(Sources([tmp_path / "rows.jsonl"]))


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def heavy(key, size):
    """A row of a conversation whose weight lies in one key."""
    text = "think " * (size // 6)
    values = {
        "tools": {"tools": [{"description": text}]},
        "other": {"notes": text},
        "reasoning_content": {"messages": [TALK[0], {**TALK[1], "reasoning_content": text}]},
        "tool_calls": {"messages": [TALK[0], {**TALK[1], "tool_calls": [{"function": {"arguments": {"a": text}}}]}]},
    }
    return json.dumps({"messages": TALK, **values[key]}) + "\n"


HEAVY = ("tools", "other", "reasoning_content", "tool_calls")


@pytest.mark.parametrize("key", HEAVY)
def test_a_row_weighs_what_all_its_keys_weigh(tmp_path, key):
    """Rows are held together up to 256 Ki characters, and one more."""
    (tmp_path / "rows.jsonl").write_text(heavy(key, 120_000) * 12)
    found = [len(batch) for batch in in_batches(iter(Sources([tmp_path / "rows.jsonl"])))]
    assert found == [3, 3, 3, 3]


@pytest.mark.parametrize("key", HEAVY)
def test_a_conversation_is_too_long_whatever_key_makes_it_so(tmp_path, key):
    (tmp_path / "rows.jsonl").write_text(heavy(key, 10) + heavy(key, 9 * MEGA))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a conversation of 9,\d+,\d+ characters"):
        list(Sources([tmp_path / "rows.jsonl"]))


@pytest.mark.slow
@pytest.mark.parametrize("value", ["[]", "[1]", '{"":{"":{"":{}}}}'])
def test_the_longest_row_of_many_small_values_takes_less_than_a_gibibyte(tmp_path, value):
    """Measured on an eighth of it."""
    many = f"{value}," * (ROW_BYTES // 8 // len(f"{value},"))
    (tmp_path / "rows.jsonl").write_text('{"text": "\\u0061", "x": [' + many + '0]}\n{"text": "b"}\n')
    grown, said = peak_mebibytes(READ, tmp_path / "rows.jsonl")
    assert not said
    assert 8 * grown < 1024


# --- long texts elsewhere ----------------------------------------------------------------------------------------


def test_a_text_is_scored_without_encoding_all_of_it(tmp_path, monkeypatch):
    import interlace
    from interlace.data.tokenizer import Tokenizer
    from interlace.evaluate.bits_per_byte import score_text
    from interlace.model.presets import preset

    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=300))
    model.tokenizer = Tokenizer.train([WORDS], 257)
    encode, seen = Tokenizer.encode, []

    def measured(tokenizer, text):
        seen.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "encode", measured)
    (tmp_path / "t.txt").write_text(WORDS * (MEGA // len(WORDS)))
    (tmp_path / "u.txt").write_text((WORDS * 100)[:2000])
    score = score_text(model, tmp_path / "t.txt", most_tokens=500)
    assert score == pytest.approx(score_text(model, tmp_path / "u.txt", most_tokens=500))
    assert max(seen) <= MEGA // 4


@pytest.mark.slow
def test_rows_that_wait_for_parquet_are_bounded_by_their_size(tmp_path):
    work = """
    from interlace.distill.export import Parquet
    file = Parquet(one)
    before = peak()
    for number in range(400):
        text = str(number) * (1 << 18)
        file.add({"id": str(number), "messages": [{"role": "user", "content": text}]})
    file.close()
    """
    grown, _ = peak_mebibytes(work, tmp_path / "rows.parquet")
    assert grown < 192  # of 290 MiB


def test_packings_of_past_epochs_are_forgotten(tmp_path):
    from interlace.data.batches import batches

    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (tmp_path / "c.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 60)
    prepare(Sources([tmp_path / "c.jsonl"]), "train:300", tmp_path / "out")
    read = batches(Corpus.open(tmp_path / "out").splits["train"], 2, 64, seed=0)
    first = read.batch(0)
    later = read.batch(400 * read.per_epoch)
    held = [x for name, x in vars(read).items() if name != "split"]
    assert sum(x.nbytes for x in held if isinstance(x, np.ndarray)) <= 32 * 60
    assert sum(len(x) for x in held if isinstance(x, list)) <= 401  # of past epochs no more than a number each
    assert batches(read.split, 2, 64, seed=0).batch(400 * read.per_epoch).tokens.equal(later.tokens)
    assert read.batch(0).tokens.equal(first.tokens)
