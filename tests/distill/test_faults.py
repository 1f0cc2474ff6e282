"""All faults at once: every row ends once, none is paid for twice without cause, and no budget is passed."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from ledgers import rows_of
from simulator import FAULTS, FORMS, HEADS, USAGE

from interlace.distill.export import export
from interlace.distill.ledger.records import Exhausted
from interlace.distill.run import generate, status

ROWS = 300
SLOW = {"slow_seconds": 0.05, "latency": 0.002, "exact_retry": True}
FEW = {"error_503": 0.003}  # whose Retry-After is a second
MIX = {name: FEW.get(name, 0.02) for name in FAULTS} | {"spurious": 0.03, "flagged": 0.03} | SLOW
LOST = ("drop", "broken", "html", "error_finish", "error_beside")  # charged, and asked again
GRADE = """
[[steps]]
name = "graded"
kind = "grade"
teacher = "sim"
max_tokens = 64
criteria = [{ name = "true", text = "It is true." }, { name = "short", text = "It is short." }]
"""


def test_every_row_ends_once_amid_all_faults(server, recipe, tmp_path):
    sim = server(**MIX)
    file = recipe(sim.url, rows=ROWS)
    found = generate(file, tmp_path / "run")
    stats, rows = sim.stats(), rows_of(tmp_path / "run", "answers")
    met = Counter(stats["counts"])
    assert all(met[name] for name in FAULTS if name not in ("loose", "error_503"))
    assert sorted(r.key for r in rows) == sorted({r.key for r in rows})
    assert len(rows) == ROWS
    states = Counter(r.state for r in rows)
    assert states["truncated"] == met["truncate"]
    assert states["refused"] == met["refuse"] + met["flagged"]
    assert states["unparsable"] == met["odd"] + met["tool_calls"]
    assert states["failed"] == met["events"]  # an endpoint that streams will stream again
    assert states["ok"] == ROWS - sum(n for s, n in states.items() if s != "ok")
    assert all(("answer" in r.values) == (r.state == "ok") and (r.state == "ok" or r.reason) for r in rows)
    assert stats["charged_bodies"] == ROWS - met["flagged"]
    assert stats["charged_twice"] == sum(met[name] for name in LOST)
    spent = found["spent"]
    assert spent["tokens"] + spent["lost_tokens"] >= stats["charged_tokens"]
    assert spent["reserved_requests"] == 0
    assert generate(file, tmp_path / "run")["steps"] == found["steps"]
    assert sim.stats()["counts"] == stats["counts"]  # nothing is asked again


def test_what_is_odd_and_good_is_an_answer_and_its_reasoning_is_kept(server, recipe, tmp_path):
    good = (*HEADS, *USAGE, *FORMS)
    sim = server(latency=0.002, **{fault: 1 / len(good) for fault in good})
    file = recipe(sim.url, rows=60, output=False)
    out = '[output]\nheld_out = 0.0\nuser = "{{ a }} + 7"\nassistant = "{{ answer }}"\nreasoning = "{{ reasoning }}"\n'
    file.write_text(file.read_text() + out)
    generate(file, tmp_path / "run")
    counts = sim.stats()["counts"]
    assert counts.keys() >= set(good)
    assert counts["received"] == 60
    export(tmp_path / "run", tmp_path / "data")
    lines = (tmp_path / "data/train.jsonl").read_text().splitlines()
    assert len(lines) == 60
    for line in lines:
        row = json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
        assert "makes" in row["messages"][-1]["reasoning_content"]
        assert row["messages"][-1]["content"].startswith("The answer is")


def test_marks_are_read_in_each_form_and_none_is_no_number(server, recipe, tmp_path):
    sim = server(**SLOW, loose=0.4, nan=0.2)
    generate(recipe(sim.url, GRADE, rows=20), tmp_path / "run")
    rows = rows_of(tmp_path / "run", "graded")
    assert len(rows) == 20
    assert all(0 <= r.values["score"] <= 1 for r in rows if r.state == "ok")
    assert sum(r.state == "ok" for r in rows) >= 18  # a mark that is no number is asked for again
    assert sim.stats()["counts"]["loose"]


@pytest.mark.parametrize(("limit", "charged"), [("max_tokens = 8_000", "tokens"), ("max_cost = 0.012", "cost")])
@pytest.mark.parametrize(
    "faults", [MIX, {"zero_usage": 1.0}, {"hidden": 0.1, "zero_usage": 0.5}], ids=["all", "zero", "hidden and zero"]
)
def test_no_budget_is_passed_whatever_the_figures_say(server, recipe, tmp_path, limit, charged, faults):
    sim = server(**{**SLOW, "hidden_tokens": 100, **faults})
    file = recipe(sim.url, run=limit, rows=600)
    for _ in range(2):
        with pytest.raises(Exhausted, match=limit.split()[0]):
            generate(file, tmp_path / "run")
    most = float(limit.split()[-1])
    assert 0.2 * most < sim.stats()[f"charged_{charged}"] <= most
    spent = status(tmp_path / "run")["spent"]
    assert spent[charged] + spent[f"lost_{charged}"] <= most
