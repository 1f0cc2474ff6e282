"""What studies and distillations read again when they go on: damage is named in one sentence, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from contextlib import closing

import pytest

from interlace.base.errors import InterlaceError
from interlace.distill.export import export
from interlace.distill.folder import DistillRun
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import Limits, Record, Reserve
from interlace.distill.report import report
from interlace.distill.run import generate, status
from interlace.runs.progress import silent
from interlace.study.quickstart.run import quickstart
from interlace.study.tasks.arms import Shape
from interlace.study.tasks.cell import Budget
from interlace.study.tasks.grid import TaskGrid
from interlace.study.tasks.registry import task

NOT_UTF8 = b'{"caf\xe9": 1}'
BROKEN = [b"", b"{", b"[]", b"3", b"{}", b"\0\0\0\0", NOT_UTF8]


def refused(call, words):
    with pytest.raises(InterlaceError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- distillations -----------------------------------------------------------------------------------------------


@pytest.fixture
def made(recipe, tmp_path):
    """(recipe file, run folder) of a distillation that asks nobody."""
    steps = '\n[output]\nuser = "What is {{ a }} + 7?"\nassistant = "{{ a }}"\nheld_out = 0.3\n'
    file = recipe("http://127.0.0.1:9/v1", steps, output=False, ask=False, rows=6)
    generate(file, tmp_path / "run")
    return file, tmp_path / "run"


ROWS = {
    "columns cut off": "UPDATE rows SET delta = substr(delta, 1, 3) WHERE id = 2",
    "columns that are a number": "UPDATE rows SET delta = '3' WHERE id = 2",
    "columns that are a list": "UPDATE rows SET delta = '[]' WHERE id = 2",
    "no columns": "UPDATE rows SET delta = NULL WHERE id = 2",
    "columns that are not UTF-8": "UPDATE rows SET delta = CAST(x'7B22e9' AS TEXT) WHERE id = 2",
    "a parent that is not there": "UPDATE rows SET parent = 999 WHERE id = 2",
    "a row that is its own parent": "UPDATE rows SET parent = 2 WHERE id = 2",
    "a circle of parents": "UPDATE rows SET parent = CASE id WHEN 2 THEN 3 ELSE 2 END WHERE id IN (2, 3)",
}


@pytest.mark.parametrize("change", list(ROWS))
def test_a_damaged_row_of_a_ledger_is_named(made, tmp_path, change):
    with sqlite3.connect(made[1] / "ledger.sqlite") as db:
        db.execute(ROWS[change])
    db.close()
    refused(lambda: export(made[1], tmp_path / "data", parquet=False), r"ledger\.sqlite.*row 2|row 2.*ledger\.sqlite")
    assert not (tmp_path / "data").exists()


def test_rows_are_made_again_as_the_error_says(made, tmp_path):
    before = [r["rows"] for r in status(made[1])["steps"]]
    with closing(sqlite3.connect(made[1] / "ledger.sqlite")) as db, db:
        db.execute(ROWS["columns cut off"])
    with pytest.raises(InterlaceError, match="made again") as caught:
        export(made[1], tmp_path / "data", parquet=False)
    with closing(sqlite3.connect(made[1] / "ledger.sqlite")) as db, db:
        db.executescript(re.search(r"sqlite3 ledger\.sqlite '([^']*)'", str(caught.value))[1])
    assert [r["rows"] for r in generate(*made)["steps"]] == before
    export(made[1], tmp_path / "data", parquet=False)


REQUESTS = {
    "a state that nobody writes": "UPDATE requests SET state = 'x'",
    "no state": "UPDATE requests SET state = NULL",
    "tokens that are text": "UPDATE requests SET answer_tokens = 'many'",
    "no answer": "UPDATE requests SET response = NULL",
    "an answer that is not UTF-8": "UPDATE requests SET response = CAST(x'7B22e9' AS TEXT)",
}


def asked(folder):
    """A ledger with one answer."""
    ledger = Ledger(folder / "ledger.sqlite", "run")
    assert ledger.requests.claim("k", "t", "{}", Reserve(5, 0.0), Limits())
    ledger.requests.finish(Record("k", "t", "ok", "{}"), Reserve(5, 0.0))
    return ledger


@pytest.mark.parametrize("change", list(REQUESTS))
def test_a_damaged_request_is_named_and_not_waited_for(tmp_path, change):
    with closing(asked(tmp_path)) as ledger:
        ledger.file.db.execute(REQUESTS[change])
        refused(lambda: ledger.requests.find("k"), r"ledger\.sqlite: table requests, request k")


def test_a_request_in_flight_of_nobody_is_lost_and_can_be_sent_again(tmp_path):
    with closing(asked(tmp_path)) as ledger:
        ledger.file.db.execute("UPDATE requests SET state = 'sent', owner = 99")
        assert ledger.recover() == 1
        assert ledger.requests.claim("k", "t", "{}", Reserve(5, 0.0), Limits())


def test_a_process_that_no_process_wrote_down_is_gone(tmp_path):
    with closing(asked(tmp_path)) as ledger:
        ledger.file.db.execute("INSERT INTO owners VALUES (99, 'elsewhere', 'x', 'y', NULL)")
        ledger.recover()
        assert ledger.file.db.execute("SELECT id FROM owners").fetchall() == [(ledger.file.owner,)]


@pytest.mark.parametrize("column", ["state", "reason", "key"])
@pytest.mark.parametrize("value", ["NULL", "x'00ff'", "CAST(x'7B22e9' AS TEXT)"])
def test_what_every_row_says_is_text(made, tmp_path, column, value):
    with closing(sqlite3.connect(made[1] / "ledger.sqlite")) as db, db:
        db.execute(f"UPDATE rows SET {column} = {value} WHERE id = 2")
    for verb in (status, report, lambda run: export(run, tmp_path / "data", parquet=False)):
        with contextlib.suppress(InterlaceError):
            verb(made[1])


@pytest.mark.parametrize("notes", ["{", "[]", "3", ""])
def test_damaged_notes_of_a_stage_are_named(made, notes):
    with sqlite3.connect(made[1] / "ledger.sqlite") as db:
        db.execute("UPDATE stages SET notes = ?", (notes,))
    db.close()
    refused(lambda: status(made[1]), r"ledger\.sqlite")


def test_what_is_only_remembered_ends_no_run(made):
    """A rate of an earlier process is a hint: one that cannot be read is as good as none."""
    run = DistillRun(made[1])
    with sqlite3.connect(run.ledger) as db:
        db.execute("INSERT INTO kept VALUES ('x', 0, '{')")
    db.close()
    ledger = run.open_ledger()
    assert ledger.recall("x") is None
    ledger.close()


RUNS = {
    "not UTF-8": lambda text: text.encode()[:-9] + b"\xe9" + text.encode()[-8:],
    "empty": lambda text: b"",
    "NUL": lambda text: bytes(len(text)),
    "a last step that is none": lambda text: re.sub(r"(?m)^last = .*$", 'last = "nobody"', text).encode(),
    "no last step": lambda text: re.sub(r"(?m)^last = .*\n", "", text).encode(),
    "no recipe": lambda text: text[: text.index("[recipe")].encode(),
    "an id that is a number": lambda text: re.sub(r"(?m)^run_id = .*$", "run_id = 3", text).encode(),
    "steps that are text": lambda text: re.sub(r"(?ms)^stages = \[.*?^\]", 'stages = ["a"]', text).encode(),
}


@pytest.mark.parametrize("change", list(RUNS))
def test_a_damaged_run_toml_of_a_distillation_is_named(made, tmp_path, change):
    file = made[1] / "run.toml"
    before = file.read_text()
    file.write_bytes(RUNS[change](before))
    assert file.read_bytes() != before.encode()
    refused(lambda: export(made[1], tmp_path / "data", parquet=False), r"run\.toml")
    if change in ("not UTF-8", "empty", "NUL", "an id that is a number"):
        refused(lambda: generate(*made), r"run\.toml")


# --- grids -------------------------------------------------------------------------------------------------------


def tiny(out):
    setting = (Shape(width=16, depth=1, heads=1, mlp=0), Budget(2, 2, (1e-3, 1e-2), evaluations=1, tests=2))
    return TaskGrid(out, {"parity": setting}, ("transformer",), 1, jobs=2)


RESULT = {"task": "parity", "scores": {"40": 0.5}, "diverged": None}


@pytest.mark.parametrize("raw", [*BROKEN, json.dumps(RESULT).encode()[:-9], b'{"scores": 3, "diverged": null}'])
def test_a_damaged_result_of_a_cell_is_named_before_anything_runs(tmp_path, raw):
    grid = tiny(tmp_path)
    folder = tmp_path / "cells" / grid.cell("parity", "transformer", 0, 1e-3).name
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(raw)
    refused(grid.pending, r"result\.json")


@pytest.mark.parametrize("raw", BROKEN)
def test_a_damaged_or_foreign_cell_is_written_anew(tmp_path, raw):
    """cell.json says what the process trains: the grid knows, and does not believe a file that says otherwise."""
    grid = tiny(tmp_path)
    cell = grid.cell("parity", "transformer", 0, 1e-3)
    cell.write(tmp_path / "cells" / cell.name)
    (tmp_path / "cells" / cell.name / "cell.json").write_bytes(raw)
    grid.job(cell)
    assert type(cell).read(tmp_path / "cells" / cell.name).seed == cell.seed


def test_a_curve_with_bytes_that_are_no_text_does_not_stop_a_grid(tmp_path):
    grid = tiny(tmp_path)
    cell = grid.cell("parity", "transformer", 0, 1e-3)
    folder = tmp_path / "cells" / cell.name
    folder.mkdir(parents=True)
    scores = {str(d): 0.5 for d in task("parity").tested}
    line = json.dumps({"step": 1, "seconds": 1.0, "scores": scores}) + "\n"
    (folder / "metrics.jsonl").write_bytes(line.encode() + b'{"step": 2, "x": "\xe9"}\n')
    assert [r["step"] for r in grid.curve(cell)] == [1]


# --- quickstart --------------------------------------------------------------------------------------------------

PLAN = {"steps": 4, "sweep_steps": 1, "precision": "float32", "batch_tokens": 1024}
SPEEDS = {"transformer": 0.1, "hybrid": 0.1}


def begun(out, texts):
    import tomli_w

    out.mkdir()
    (out / "run.toml").write_text(tomli_w.dumps({"quickstart": {"minutes": 1.0, "data": str(texts)}}))
    (out / "plan.json").write_text(json.dumps({**PLAN, "seconds_per_step": SPEEDS}))


@pytest.mark.parametrize(
    "raw", [*BROKEN, b'{"steps": "many"}', json.dumps({**PLAN, "steps": -1, "seconds_per_step": SPEEDS}).encode()]
)
def test_a_damaged_plan_is_named(tmp_path, texts, raw):
    begun(tmp_path / "run", texts)
    (tmp_path / "run/plan.json").write_bytes(raw)
    refused(lambda: quickstart(1.0, tmp_path / "run", texts, silent), r"plan\.json")


@pytest.mark.parametrize("raw", [b"{\n", b"[]\n", b"3\n", b"{}\n", b"\0\0\0\n", NOT_UTF8, b'{"model": "x"}\n'])
def test_a_damaged_sweep_is_named(tmp_path, texts, raw):
    begun(tmp_path / "run", texts)
    (tmp_path / "run/sweep.jsonl").write_bytes(raw)
    refused(lambda: quickstart(1.0, tmp_path / "run", texts, silent), r"sweep\.jsonl")


# --- ladders -----------------------------------------------------------------------------------------------------


WRONG_FACTS = [b'{"commands": 3}', b'{"data": []}', b'{"rates": {"a": {"tried": [], "best": "x"}}}']


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3", b"\0\0", NOT_UTF8[:-4], *WRONG_FACTS])
def test_damaged_facts_of_a_ladder_are_named(tmp_path, raw):
    from interlace.study.ladder.gather import read_facts

    (tmp_path / "ladder.json").write_bytes(raw)
    refused(lambda: read_facts(tmp_path), r"ladder\.json")


@pytest.mark.parametrize("raw", [b"", b"[", NOT_UTF8, b'ladder = "x"'])
def test_a_report_of_a_damaged_ladder_names_the_file(tmp_path, raw):
    from interlace.study.ladder.gather import about

    (tmp_path / "run.toml").write_bytes(raw)
    refused(lambda: about(tmp_path), r"run\.toml")


def test_a_recipe_of_a_run_that_was_changed_by_hand_is_written_anew(tmp_path, texts):
    from interlace.study.ladder.plan import build
    from interlace.study.ladder.run import LadderRun

    delta = {"heads": 2, "key_dim": 6, "value_dim": 12}
    table = {
        "ladder": {"multiples": [0.1], "seeds": 1},
        "rate": {"tried": [2e-3]},
        "data": {"tokenizer": "train:300", "length": 32, "rows": 2, "source": str(texts)},
        "train": {"evaluations": 1, "evaluation_tokens": 640, "checkpoints": 1},
        "model": {"vocabulary": 300},
        "sizes": {"a": {"width": 16, "depth": 2, "gated_delta": delta, "mlp": {"width": 48}}},
        "architectures": {"delta": {"pattern": ["gated_delta"], "gated_delta": {}}},
    }
    run = LadderRun(build(table), tmp_path / "out")
    run.open()
    cell = run.pending()[0]
    run.job(cell)
    file = tmp_path / "out/recipes" / f"{cell.name}.toml"
    before = file.read_text()
    file.write_text(before.replace("learning_rate = 0.002", "learning_rate = 0.5"))
    assert file.read_text() != before
    run.job(cell)
    assert file.read_text() == before
