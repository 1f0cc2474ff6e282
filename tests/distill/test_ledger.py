from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from interlace.base.errors import DataError, Failure
from interlace.base.text import clean, digest
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import Exhausted, Limits, NewRow, Record, Reserve

FREE = Limits()
SMALL = Reserve(100, 0.5)


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "l.sqlite", "run")
    yield made
    made.close()


def paid(ledger, key, reserve=SMALL, **more):
    assert ledger.requests.claim(key, "t", "{}", reserve, more.pop("limits", FREE))
    ledger.requests.finish(
        Record(key, "t", "ok", "text", prompt_tokens=10, answer_tokens=20, cost=0.1, **more), reserve
    )


def test_a_key_is_the_hash_of_canonical_json():
    assert digest({"b": 1, "a": [1, "é"]}) == digest({"a": [1, "é"], "b": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest({"a": "\ud800\0"})  # whatever a text holds


def test_a_request_is_claimed_once_and_found_ever_after(ledger, tmp_path):
    paid(ledger, "k")
    assert ledger.requests.find("k").response == "text"
    assert not ledger.requests.claim("k", "t", "{}", SMALL, FREE)
    assert ledger.requests.claim("open", "t", "{}", SMALL, FREE)
    other = Ledger(tmp_path / "l.sqlite", "other")
    assert other.requests.find("k") == ledger.requests.find("k")
    assert other.requests.find("open") is None
    assert not other.requests.claim("open", "t", "{}", SMALL, FREE)  # we are alive and about it
    ledger.requests.unclaim("open", SMALL)
    assert other.requests.claim("open", "t", "{}", SMALL, FREE)
    assert other.requests.spent().reserved_requests == 1
    assert ledger.requests.spent().reserved_requests == 0
    other.close()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(requests=2), "max_requests: 2 spent, and the next request can take 1, which would pass 2"),
        (Limits(tokens=150), "max_tokens: 60 spent, and the next request can take 100, which would pass 150"),
        (Limits(cost=0.6), "max_cost: 0.2000 spent, and the next request can take 0.5000, which would pass 0.6000 USD"),
    ],
)
def test_a_budget_holds_before_a_request_is_sent(ledger, limits, said):
    paid(ledger, "a", limits=Limits())
    paid(ledger, "b", limits=Limits())
    with pytest.raises(Exhausted) as error:
        ledger.requests.claim("c", "t", "{}", SMALL, limits)
    assert said in str(error.value)
    assert ledger.requests.find("c") is None
    assert ledger.requests.spent().requests == 2


def test_what_is_in_flight_is_held_back(ledger):
    assert ledger.requests.claim("a", "t", "{}", SMALL, Limits(cost=0.9))
    with pytest.raises(Exhausted, match=r"0\.5000 held for requests in flight"):
        ledger.requests.claim("b", "t", "{}", SMALL, Limits(cost=0.9))
    ledger.requests.finish(Record("a", "t", "ok", cost=0.1), SMALL)
    assert ledger.requests.claim("b", "t", "{}", SMALL, Limits(cost=0.9))


def test_a_try_that_may_have_been_charged_stays_taken(ledger):
    assert ledger.requests.claim("a", "t", "{}", SMALL, FREE)
    ledger.requests.release_try("a", SMALL, charged=True)
    assert ledger.requests.claim("a", "t", "{}", SMALL, FREE)
    ledger.requests.release_try("a", SMALL, charged=False)
    ledger.requests.fail(Record("a", "t", "failed", error="status 500", tries=2))
    spent = ledger.requests.spent()
    assert (spent.lost_requests, spent.lost_tokens, spent.lost_cost) == (1, 100, 0.5)
    assert (spent.requests, spent.tokens, spent.cost) == (1, 0, 0)
    assert spent.reserved_requests == 0
    assert ledger.requests.find("a").state == "failed"
    with pytest.raises(Exhausted, match=r"0\.5000 perhaps charged for requests lost in flight"):
        ledger.requests.claim("b", "t", "{}", SMALL, Limits(cost=0.7))


KILLED = """
import os, signal, sys
from pathlib import Path
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import Limits, Record, Reserve
l = Ledger(Path(sys.argv[1]), "run")
for i in range(3): l.requests.claim(f"k{i}", "t", "{}", Reserve(100, 0.5), Limits())
l.requests.finish(Record("k0", "t", "ok", cost=0.1), Reserve(100, 0.5))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_in_flight_is_opened_and_stays_counted(tmp_path):
    path = tmp_path / "l.sqlite"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -signal.SIGKILL
    ledger = Ledger(path, "run")
    assert ledger.requests.find("k0").state == "ok"
    assert ledger.requests.find("k1") is None
    assert ledger.requests.claim("k1", "t", "{}", SMALL, FREE)
    spent = ledger.requests.spent()
    assert (spent.lost_requests, spent.lost_cost, spent.reserved_requests) == (2, 1.0, 1)
    ledger.close()


def test_closing_in_the_middle_counts_what_was_in_flight_as_lost(tmp_path):
    first = Ledger(tmp_path / "l.sqlite", "run")
    first.requests.claim("a", "t", "{}", SMALL, FREE)
    first.close()
    second = Ledger(tmp_path / "l.sqlite", "run")
    assert second.requests.spent().lost_cost == 0.5
    assert second.requests.claim("a", "t", "{}", SMALL, FREE)
    second.close()


def test_processes_that_race_for_a_request_claim_it_once_and_share_the_budget(tmp_path):
    path, won = tmp_path / "l.sqlite", []
    ledgers = [Ledger(path, "run") for _ in range(4)]

    def race(ledger):
        for i in range(40):
            try:
                if ledger.requests.claim(f"k{i}", "t", "{}", Reserve(1, 0.1), Limits(requests=30)):
                    won.append(i)
                    ledger.requests.finish(Record(f"k{i}", "t", "ok"), Reserve(1, 0.1))
            except Exhausted:
                return

    threads = [threading.Thread(target=race, args=(x,)) for x in ledgers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == len(set(won)) == 30
    for x in ledgers:
        x.close()


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "l.sqlite"
    Ledger(path, "run").close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"written by a newer interlace \(format 99"):
        Ledger(path, "run")
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["text", "other database", "torn"])
def test_a_damaged_ledger_is_refused_and_left_alone(tmp_path, how):
    path = tmp_path / "l.sqlite"
    if how == "text":
        path.write_text("this is no ledger" * 1000)
    elif how == "other database":
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE mine (x)")
        db.commit()
        db.close()
    else:
        ledger = Ledger(path, "run")
        for i in range(300):
            paid(ledger, f"k{i}")
        ledger.close()
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2 : len(raw) // 2 + 8192] = os.urandom(8192)
        path.write_bytes(raw)
    before = path.read_bytes()
    with pytest.raises(DataError, match="left as it is"):
        Ledger(path, "run")
    assert path.read_bytes() == before


def test_a_missing_ledger_is_not_made_to_be_read(tmp_path):
    with pytest.raises(DataError, match="the ledger of this run is missing"):
        Ledger(tmp_path / "none.sqlite", "run", create=False)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_full_disk_is_said_and_the_room_kept_back_is_given_up_first(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite", "run")
    assert ledger.file.reserve_file(ledger.file.owner).stat().st_size > 1 << 20
    assert ledger.requests.claim("a", "t", "{}", SMALL, FREE)
    pages = ledger.file.db.execute("PRAGMA page_count").fetchone()[0]
    ledger.file.db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own "database or disk is full"
    many = [NewRow(f"{i}", {"text": "x" * 500}) for i in range(1000)]
    with pytest.raises(Failure, match="the disk is full; make room"):
        ledger.rows.add("s", many)
    ledger.file.db.execute("PRAGMA max_page_count = 1000000")
    ledger.requests.finish(Record("a", "t", "ok", "y" * 50_000), SMALL)
    assert len(ledger.requests.find("a").response) == 50_000
    ledger.close()


def test_rows_inherit_columns_and_are_read_in_order(ledger):
    ledger.rows.begin_stage("s")
    ledger.rows.add("s", [NewRow("000000001", {"a": 1, "b": "x"}), NewRow("000000000", {"a": 0, "b": "y"})])
    first, second = ledger.rows.waiting("s", "t", 0, 10)
    ledger.rows.begin_stage("t")
    ledger.rows.add(
        "t", [NewRow("000000001", {"b": "z", "c": [1]}, first), NewRow("000000000", {}, second, "dropped", "no")]
    )
    assert [r.key for r in ledger.rows.ordered("s")] == ["000000000", "000000001"]
    assert ledger.rows.waiting("s", "t", 0, 10) == []
    (row,) = ledger.rows.ordered("t")
    assert row.values == {"a": 1, "b": "z", "c": [1]}
    assert ledger.rows.count("t") == {"ok": 1, "dropped": 1}
    assert ledger.rows.reasons("t") == [("dropped", "no", 1)]
    ledger.rows.add("t", [NewRow("000000001", {"b": "other"}, first)])
    assert next(iter(ledger.rows.ordered("t"))).values["b"] == "z"


def test_what_is_kept_is_known_to_the_next_process(ledger, tmp_path):
    assert ledger.recall("x") is None
    ledger.keep("x", {"a": 1.5})
    other = Ledger(tmp_path / "l.sqlite", "run", write=False)
    age, value = other.recall("x")
    assert 0 <= age < 5
    assert value == {"a": 1.5}
    other.close()


def test_a_ledger_of_format_1_is_brought_up_to_date(tmp_path):
    path = tmp_path / "l.sqlite"
    made = Ledger(path, "run")
    paid(made, "k")
    made.close()
    db = sqlite3.connect(path)
    db.executescript(
        "ALTER TABLE stages DROP COLUMN ordered; DROP TABLE kept; DROP INDEX rows_parent; DROP INDEX uses_row;"
        "CREATE INDEX rows_parent ON rows (stage, parent); CREATE INDEX uses_stage ON uses (stage);"
        "PRAGMA user_version = 1;"
    )
    db.close()
    again = Ledger(path, "run")
    assert again.requests.find("k").response == "text"
    assert again.rows.begin_stage("s", ordered=True) is False
    again.keep("x", 1)
    again.close()


def test_any_text_goes_in_and_comes_out(ledger):
    texts = ["lone \ud800 surrogate", "nul \0 here", "x" * 10_000_000, "emoji 🙂", ""]
    ledger.rows.add("s", [NewRow(f"{i}", {"text": t}) for i, t in enumerate(texts)])
    assert [r.values["text"] for r in ledger.rows.ordered("s")] == texts
    assert [clean(t) for t in texts[:2]] == ["lone � surrogate", texts[1]]
    assert clean("🙂") == "🙂"
    json.dumps([r.values for r in ledger.rows.ordered("s")])
