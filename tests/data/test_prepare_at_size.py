"""Preparing much text: pieces, workers, kills, duplicates, rows that cannot be used, Parquet, zstd, globs, the hub."""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from interlace.base.errors import ConfigError, DataError, Failure
from interlace.cli.main import run
from interlace.data import prepare as module
from interlace.data.prepare import Chat, prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.text.rows import line_starts


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    Tokenizer.train(["the quick brown fox jumps over the lazy dog"] * 3, 280).write(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer/tokenizer.json")


def row(i):
    return {"id": i, "text": f"row {i}: the quick brown fox number {i * i} jumps over the lazy dog " * (1 + i % 7)}


def rows_file(path, count=200):
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(count)))
    return path


def documents(folder):
    """The texts of each split, in order."""
    corpus = Corpus.open(folder)
    corpus.verify()
    found = {}
    for name, split in corpus.splits.items():
        spans = zip(split.borders[:-1], split.borders[1:], strict=True)
        found[name] = [corpus.tokenizer.decode(split.read(int(a), int(b)).tolist()) for a, b in spans]
    return found


def files_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "manifest.json"}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 4000)


def test_pieces_change_nothing(tmp_path, tokenizer, monkeypatch):
    file = rows_file(tmp_path / "rows.jsonl")
    prepare(Sources([file]), tokenizer, tmp_path / "one")
    monkeypatch.setattr(module, "PIECE_BYTES", 4000)
    assert len(list(Sources([file]).units(4000))) > 10
    prepare(Sources([file]), tokenizer, tmp_path / "many")
    monkeypatch.setattr(module, "SMALL_BYTES", 0)  # nothing is looked through before
    prepare(Sources([file]), tokenizer, tmp_path / "large")
    assert files_of(tmp_path / "many") == files_of(tmp_path / "one") == files_of(tmp_path / "large")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same(tmp_path, tokenizer, small_pieces):
    file = rows_file(tmp_path / "rows.jsonl", 400)
    (tmp_path / "texts").mkdir()
    for i in range(5):
        (tmp_path / f"texts/{i}.txt").write_text(f"text {i} " * 300)
    for workers in (1, 3):
        prepare(Sources([file, tmp_path / "texts"]), tokenizer, tmp_path / f"{workers}", workers=workers)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")


def test_lines_are_cut_where_they_end(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [b"x" * (i * 37 % 101) + b"\n" for i in range(300)]
    file.write_bytes(b"".join(lines)[:-1])
    for every in (1, 50, 1000, 10**6):
        starts = line_starts(file, every)
        places = np.cumsum([0, *map(len, lines)])
        for byte, number in starts[:-1]:
            assert places[number - 1] == byte
        assert starts[-1][0] == file.stat().st_size
        assert starts == sorted(set(starts))


KILLED = """
import sys
from pathlib import Path
from interlace.data import prepare as module
from interlace.data.sources import Sources
module.PIECE_BYTES = 4000
def watch(now):
    print(now.label, now.done, flush=True)
module.prepare(Sources([Path(sys.argv[1])]), sys.argv[2], Path(sys.argv[3]), watch=watch, drop_duplicates=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_with_what_is_left(tmp_path, tokenizer, small_pieces):
    file = rows_file(tmp_path / "rows.jsonl", 3000)
    prepare(Sources([file]), tokenizer, tmp_path / "whole", drop_duplicates=True)
    out, seen = tmp_path / "killed", []
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(file), tokenizer, str(out)], stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            label, done = line.split()
            if label == "encoding" and float(done) > (seen[-1] if seen else 0) + 60_000:
                seen.append(float(done))
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        process.wait()
        assert out.is_dir() == (process.returncode == 0)
        if process.returncode == 0:
            break
    begun = len(list(tmp_path.glob("killed.pieces.partial/piece-*")))
    if begun:
        told = []
        prepare(Sources([file]), tokenizer, out, watch=told.append, drop_duplicates=True)
        first = next(now for now in told if now.label == "encoding")
        assert first.done > 0
    assert seen
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not list(tmp_path.glob("*.partial"))


def test_what_was_prepared_for_other_settings_is_not_gone_on_with(tmp_path, tokenizer, small_pieces, monkeypatch):
    file = rows_file(tmp_path / "rows.jsonl")
    encode, calls = module.encode_piece, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        encode(*arguments)

    monkeypatch.setattr(module, "encode_piece", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare(Sources([file]), tokenizer, tmp_path / "out")
    assert len(list(tmp_path.glob("out.pieces.partial/piece-*"))) == 3
    begun = []

    def noted(sources, piece, *rest):
        begun.append(piece.folder.name)
        encode(sources, piece, *rest)

    monkeypatch.setattr(module, "encode_piece", noted)
    time.sleep(0.01)
    file.write_text(file.read_text() + json.dumps(row(1000)) + "\n")
    prepare(Sources([file]), tokenizer, tmp_path / "out")
    assert begun[0] == "piece-000000"
    assert sum(len(x) for x in documents(tmp_path / "out").values()) == 201


def test_duplicates_are_left_out_whatever_split_they_are_in(tmp_path, tokenizer, small_pieces):
    file = tmp_path / "rows.jsonl"
    texts = [row(i % 150) for i in range(400)]
    file.write_text("".join(json.dumps(t) + "\n" for t in texts))
    manifest = prepare(Sources([file]), tokenizer, tmp_path / "out", held_out_share=0.3, drop_duplicates=True)
    assert manifest["duplicates"] == 250
    found = documents(tmp_path / "out")
    both = found["train"] + found["held_out"]
    assert len(both) == len(set(both)) == 150
    assert set(both) == {t["text"] for t in texts}
    everything = prepare(Sources([file]), tokenizer, tmp_path / "all", held_out_share=0.3)
    assert everything["duplicates"] == 0
    assert sum(s["documents"] for s in everything["splits"].values()) == 400
    of_text = sum(len(t.encode()) for t in both)
    assert sum(s["bytes"] for s in manifest["splits"].values()) == of_text


def test_rows_that_cannot_be_used_are_kept_aside_and_named(tmp_path, tokenizer, capsys):
    good = [json.dumps(row(i)) for i in range(30)]
    bad = ["{broken", json.dumps([1, 2]), json.dumps({"text": 3}), json.dumps({"other": "x"}), "caf\udce9"]
    lines = good[:10] + bad[:2] + good[10:20] + bad[2:] + good[20:]
    file = tmp_path / "rows.jsonl"
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:11: is not JSON"):
        prepare(Sources([file]), tokenizer, tmp_path / "strict")
    words = ["data", "prepare", str(file), "--tokenizer", tokenizer, "--out", str(tmp_path / "out")]
    assert run(words) == 0
    said = capsys.readouterr().err
    assert "5 rows cannot be used" in said
    assert "rows.jsonl:11: is not JSON" in said
    kept = [json.loads(line) for line in (tmp_path / "out/aside.jsonl").read_text().splitlines()]
    assert [k["where"].rpartition(":")[2] for k in kept] == ["11", "12", "23", "24", "25"]
    assert kept[0]["row"] == "{broken"
    assert "not UTF-8" in kept[4]["why"]
    assert sum(len(x) for x in documents(tmp_path / "out").values()) == 30
    assert json.loads((tmp_path / "out/manifest.json").read_text())["aside"] == 5


def test_parquet_zstd_and_globs_hold_the_same_text(tmp_path, tokenizer, small_pieces):
    rows_file(tmp_path / "rows.jsonl")
    raw = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl.zst").write_bytes(pyarrow.compress(raw, codec="zstd", asbytes=True))
    table = pyarrow.Table.from_pylist([row(i) for i in range(200)])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=30)
    assert len(list(Sources([tmp_path / "rows.parquet"]).units(4000))) > 3
    (tmp_path / "cut").mkdir()
    for i, part in enumerate((raw.splitlines(keepends=True)[:90], raw.splitlines(keepends=True)[90:])):
        (tmp_path / f"cut/{i}.jsonl").write_bytes(b"".join(part))
    expected = [row(i)["text"] for i in range(200)]
    for source in ("rows.jsonl", "rows.jsonl.zst", "rows.parquet", "cut/*.jsonl"):
        assert [d.text for d in Sources([tmp_path / source])] == expected, source
    for source in ("rows.jsonl.zst", "rows.parquet"):
        out = tmp_path / source.replace(".", "-")
        prepare(Sources([tmp_path / source]), tokenizer, out)
        found = documents(out)
        assert sorted(found["train"] + found["held_out"]) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.jsonl.zst", b"not zstd", "is not a whole zstd file"),
        ("a.parquet", b"not parquet", "cannot be read as Parquet"),
        ("nothing-*.jsonl", None, "matches no file"),
        ("hf:", None, "no name"),
        ("hf:owner/name?colour=red", None, "unknown key 'colour'; write hf:OWNER/NAME?config=...&split=..."),
    ],
)
def test_bad_sources_of_new_kinds_are_named(tmp_path, name, raw, words):
    source = name if name.startswith("hf:") else tmp_path / name
    if raw is not None:
        source.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        list(Sources([source]))
    assert words in str(caught.value)


def test_a_data_set_of_the_hub_is_read_as_it_comes(tmp_path, tokenizer, monkeypatch):
    """By the library itself where it is installed, from files of this machine; else its absence is named."""
    file = rows_file(tmp_path / "rows.jsonl", 20)
    source = f"hf:json?files={file}"
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"pip install 'interlace\[datasets\]'"):
            list(Sources([source]))
        return
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert [d.text for d in Sources([source])] == [row(i)["text"] for i in range(20)]
    prepare(Sources([source]), tokenizer, tmp_path / "out", held_out_share=0.3)
    assert sum(len(x) for x in documents(tmp_path / "out").values()) == 20


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named(tmp_path, tokenizer, small_pieces):
    def kill_one():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(Failure, match="a process ended with exit code -9"):
        prepare(Sources([rows_file(tmp_path / "rows.jsonl")]), tokenizer, tmp_path / "out", workers=2)
    killer.join()
    assert not (tmp_path / "out").exists()
    prepare(Sources([tmp_path / "rows.jsonl"]), tokenizer, tmp_path / "out")


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path, tokenizer, small_pieces):
    """Killed with its workers in the middle, the same command goes on at once, and nobody disturbs it."""
    file = rows_file(tmp_path / "rows.jsonl", 3000)
    code = KILLED.replace("watch=watch,", "watch=watch, workers=2,")
    code = code.replace("module.prepare", "if __name__ == '__main__':\n    module.prepare")
    script = tmp_path / "script.py"
    script.write_text(code)
    words = [sys.executable, str(script), str(file), tokenizer, str(tmp_path / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("encoding") and float(line.split()[1]) > 0:
            break
    children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    handles = [os.pidfd_open(p) for p in children]
    process.kill()
    process.stdout.close()
    process.wait()
    for handle in handles:
        assert select.select([handle], [], [], 20)[0]
        os.close(handle)
    prepare(Sources([file]), tokenizer, tmp_path / "out", drop_duplicates=True)
    assert sum(len(x) for x in documents(tmp_path / "out").values()) == 3000


def test_what_is_being_written_is_not_read(tmp_path, tokenizer, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"text {i} " * 50)
    encode, calls = module.encode_piece, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 1:
            (folder / "out.pieces.partial/note.txt").write_text("mine")
            raise KeyboardInterrupt
        encode(*arguments)

    monkeypatch.setattr(module, "encode_piece", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare(Sources([folder]), tokenizer, folder / "out")
    manifest = prepare(Sources([folder]), tokenizer, folder / "out")
    assert sum(s["documents"] for s in manifest["splits"].values()) == 12


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, tokenizer, monkeypatch):
    file = rows_file(tmp_path / "rows.jsonl")
    encode = module.encode_piece

    def grows(*arguments):
        file.write_text(file.read_text() + json.dumps(row(7)) + "\n")
        encode(*arguments)

    monkeypatch.setattr(module, "encode_piece", grows)
    with pytest.raises(DataError, match=r"rows\.jsonl: changed while it was read"):
        prepare(Sources([file]), tokenizer, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_recursive_glob_reads_each_file_once(tmp_path):
    (tmp_path / "t/sub").mkdir(parents=True)
    for name in ("a", "sub/b", "sub/c"):
        (tmp_path / f"t/{name}.txt").write_text(f"text of {name} " * 4000)
    by_glob = [d.text for d in Sources([tmp_path / "t/**"])]
    assert sorted(by_glob) == sorted(d.text for d in Sources([tmp_path / "t"]))
    (tmp_path / "h").mkdir()
    (tmp_path / "h/.hidden").write_text("x")
    with pytest.raises(DataError, match="matches no file"):
        list(Sources([tmp_path / "h/.*"]))


def test_a_conversation_that_its_template_refuses_is_put_aside(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"messages": turns if i != 5 else [{"role": "user", "content": "bad"}, turns[1]]} for i in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    template = (
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad words') }}{% endif %}"
        "{{ m.content }}<|endoftext|>{% endfor %}"
    )
    with pytest.raises((ConfigError, DataError), match="bad words"):
        prepare(Sources([file]), tokenizer, tmp_path / "strict", chat=Chat(template), held_out_share=0.3)
    assert not list(tmp_path.glob("strict*"))
    sources = Sources([file], aside=[])
    manifest = prepare(sources, tokenizer, tmp_path / "out", chat=Chat(template), held_out_share=0.3)
    assert sum(s["documents"] for s in manifest["splits"].values()) == 11
    row = json.loads((tmp_path / "out" / "aside.jsonl").read_text())
    assert row["where"] == "rows.jsonl:6"
    assert "bad words" in row["why"]


def test_what_is_said_of_texts_that_are_the_same(tmp_path, tokenizer):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("the same words")
    sources = Sources([tmp_path / "a.txt", tmp_path / "b.txt"])
    with pytest.raises(DataError, match="after 1 with the same text as an earlier one were left out"):
        prepare(sources, tokenizer, tmp_path / "out", drop_duplicates=True)
