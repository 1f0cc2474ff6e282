"""A distillation on a disk that cannot be written: everything that reads it reads it, and changes nothing."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sqlite3
from contextlib import contextmanager

import pytest

from interlace.cli.main import run as interlace
from interlace.distill.export import export
from interlace.distill.folder import DistillRun
from interlace.distill.run import generate, status

VERSION, OVERRIDE, SEARCH, OWNER = 0x20080522, 1, 2, 3  # of capset; CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


@contextmanager
def bound_by_modes():
    """The modes of files hold for this thread too where it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, words)
    before = words[0]
    words[0] &= ~(1 << OVERRIDE | 1 << SEARCH | 1 << OWNER)
    libc.capset(header, words)
    try:
        yield
    finally:
        words[0] = before
        libc.capset(header, words)


@contextmanager
def read_only(folder):
    """Nothing in the folder can be written, and nothing be made in it."""
    places = [folder, *folder.rglob("*")]
    modes = {p: p.stat().st_mode for p in places}
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        with bound_by_modes():
            assert not os.access(folder, os.W_OK) or os.geteuid() == 0
            with pytest.raises(PermissionError):
                (folder / "probe").touch()
            yield
    finally:
        for place, mode in modes.items():
            place.chmod(mode)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def finished(recipe, tmp_path):
    """A run that asks nobody."""
    steps = '\n[output]\nuser = "What is {{ a }} + 7?"\nassistant = "{{ a }}"\nheld_out = 0.3\n'
    generate(recipe("http://127.0.0.1:9/v1", steps, output=False, ask=False, rows=6), tmp_path / "run")
    return tmp_path / "run"


def test_status_and_export_of_a_finished_run(finished, tmp_path, capsys):
    want, before = status(finished), contents(finished)
    with read_only(finished):
        assert status(finished) == want
        manifest = export(finished, tmp_path / "data", parquet=False)
        assert interlace(["distill", "status", str(finished), "--json"]) == 0
    assert sum(s["rows"] for s in manifest["splits"].values()) == 6
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(want))
    assert contents(finished) == before


def test_a_report_is_written_where_it_can_be(finished, tmp_path, capsys):
    with read_only(finished):
        assert interlace(["distill", "report", str(finished), "--out", str(tmp_path / "page.html")]) == 0
        assert "6 rows" in (tmp_path / "page.html").read_text()
        assert interlace(["distill", "report", str(finished)]) == 1
    said = capsys.readouterr().err
    assert "report.html" in said
    assert "--out" in said


def test_a_ledger_that_several_runs_share_lies_elsewhere_and_is_read_alike(recipe, tmp_path):
    steps = '\n[output]\nuser = "What is {{ a }} + 7?"\nassistant = "{{ a }}"\nheld_out = 0.3\n'
    shared = tmp_path / "shared #1 ?x=%20"  # what a URI would read otherwise
    shared.mkdir()
    file = recipe("http://127.0.0.1:9/v1", steps, output=False, ask=False, run=f'ledger = "{shared / "l.sqlite"}"')
    generate(file, tmp_path / "run")
    want = status(tmp_path / "run")
    with read_only(shared):
        assert status(tmp_path / "run") == want
    assert [p.name for p in shared.iterdir()] == ["l.sqlite"]


def killed(run, folder):
    """A copy of a run as a killed process leaves it: what was written last lies in the file beside the ledger."""
    ledger = run / "ledger.sqlite"
    db = sqlite3.connect(ledger)
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute(
        "INSERT INTO rows (stage, key, state, reason, delta) SELECT stage, 'zz', 'ok', '', delta FROM rows LIMIT 1"
    )
    db.commit()
    shutil.copytree(run, folder)
    db.close()
    assert (folder / "ledger.sqlite-wal").stat().st_size > 0
    return folder


@pytest.mark.parametrize("index", ["there", "gone"])
def test_what_a_killed_process_wrote_last_is_read_as_well(finished, tmp_path, index):
    run = killed(finished, tmp_path / "copy")
    if index == "gone":
        (run / "ledger.sqlite-shm").unlink()
    before = contents(run)
    with read_only(run):
        assert sum(status(run)["steps"][0]["rows"].values()) == 7
    assert contents(run) == before


def test_reading_a_run_that_can_be_written_changes_nothing_either(finished, tmp_path):
    run = killed(finished, tmp_path / "copy")
    before = (run / "ledger.sqlite").read_bytes()
    status(run)
    assert (run / "ledger.sqlite").read_bytes() == before


def test_reading_a_finished_run_leaves_no_file_beside_it(finished):
    before = contents(finished)
    status(finished)
    assert contents(finished) == before


def test_going_on_with_it_says_that_it_cannot_be_written(finished, recipe, capsys):
    with read_only(finished):
        assert interlace(["distill", "generate", str(finished.parent / "r.toml"), "--out", str(finished)]) == 1
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert said.count("\n") == 1


def test_a_ledger_that_may_not_be_read_is_one_sentence(finished, capsys):
    DistillRun(finished).ledger.chmod(0)
    with bound_by_modes():
        assert interlace(["distill", "status", str(finished)]) in (1, 2)
    assert "ledger.sqlite" in capsys.readouterr().err


def test_a_trained_run_on_a_read_only_disk_is_used(recipe_of_training, tmp_path, capsys):
    file, out = recipe_of_training
    assert interlace(["train", str(file), "--out", str(out)]) == 0
    with read_only(out):
        assert interlace(["inspect", str(out)]) == 0
        assert interlace(["data", "inspect", str(out / "data")]) == 0
        assert interlace(["generate", str(out), "the quick", "--max-tokens", "3"]) == 0
        assert interlace(["train", str(file), "--out", str(out)]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.fixture
def recipe_of_training(texts, tmp_path):
    """(recipe file, folder)."""
    file = tmp_path / "train.toml"
    file.write_text(
        f"""
model = {{ width = 16, depth = 1, vocabulary = 300, pattern = ["attention"], attention.heads = 2, mlp.width = 24 }}
data = {{ source = "{texts}", tokenizer = "train:300", length = 48, rows = 4 }}
train = {{ tokens = 384, evaluations = 1, evaluation_tokens = 480, checkpoints = 1 }}
"""
    )
    return file, tmp_path / "trained"
