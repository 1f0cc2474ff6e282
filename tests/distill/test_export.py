"""What is written in the end: conversations, splits, the manifest, the report, and training on them."""

from __future__ import annotations

import json

import pyarrow.parquet as parquet
import pytest

from interlace.base.errors import DataError
from interlace.base.files import sha256
from interlace.cli.main import run
from interlace.distill.export import export
from interlace.distill.report import report
from interlace.distill.run import generate, status

STEPS = '[[steps]]\nname = "checked"\nkind = "verify"\nby = "numeric"\ngold = "{{ a + 7 }}"\n'


@pytest.fixture
def done(server, recipe, tmp_path):
    """A finished run of sums, some of which are wrong and dropped."""
    sim = server(truncate=0.1, drop=0.05)
    file = recipe(sim.url, STEPS, rows=80, output=False)
    out = '[output]\nsystem = "Add."\nuser = "{{ a }} + 7"\nassistant = "{{ answer }}"\nreasoning = "{{ reasoning }}"\n'
    text = file.read_text().replace("max_tokens = 64", "max_tokens = 64\nsamples = 2")
    file.write_text(text + out + 'keep = ["a"]\nheld_out = 0.25\nsplit_by = "{{ a }}"\n')
    generate(file, tmp_path / "run")
    return tmp_path / "run"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_conversations_are_split_by_hash_and_nothing_is_lost(done, tmp_path):
    manifest = export(done, tmp_path / "data")
    train, held_out = lines(tmp_path / "data/train.jsonl"), lines(tmp_path / "data/held_out.jsonl")
    kept = status(done)["steps"][-1]["rows"]["ok"]
    assert len(train) + len(held_out) == kept
    assert 10 < len(held_out) < 70
    assert not {r["a"] for r in train} & {r["a"] for r in held_out}
    row = train[0]
    assert [t["role"] for t in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][2]["reasoning_content"].endswith(f"makes {row['a'] + 7}.")
    assert row["messages"][2]["content"] == f"The answer is {row['a'] + 7}."
    table = parquet.read_table(tmp_path / "data/train.parquet").to_pylist()
    assert [t["id"] for t in table] == [r["id"] for r in train]
    assert table[0]["messages"][2] == row["messages"][2]
    assert json.loads(table[0]["columns"]) == {"a": row["a"]}
    again = export(done, tmp_path / "again")
    assert again["splits"] == manifest["splits"]
    for split in manifest["splits"].values():
        for name, digest in split["sha256"].items():
            assert sha256(tmp_path / "data" / name) == digest


def test_the_manifest_says_where_everything_came_from(done, tmp_path):
    manifest = export(done, tmp_path / "data")
    assert manifest == json.loads((tmp_path / "data/manifest.json").read_text())
    assert manifest["finished"]
    assert sum(manifest["rows_by_state"].values()) == 160
    assert manifest["teachers"]["sim"]["terms"] == "own"
    assert manifest["teachers"]["sim"]["licence"] == "none"
    assert manifest["recipe"]["steps"][0]["name"] == "seeds"
    assert manifest["spent"]["cost"] > 0
    assert "interlace" in manifest["versions"]["made with"]


def test_an_export_replaces_its_own_and_nothing_else(done, tmp_path):
    export(done, tmp_path / "data", parquet=False)
    export(done, tmp_path / "data")
    assert (tmp_path / "data/train.parquet").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="no export wrote it"):
        export(done, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_old_files_of_an_export_do_not_stay_beside_new_ones(done, tmp_path):
    export(done, tmp_path / "data")
    export(done, tmp_path / "data", parquet=False)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["held_out.jsonl", "manifest.json", "train.jsonl"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text('{"name": "not ours"}')
    (other / "train.jsonl").write_text("precious")
    with pytest.raises(DataError, match="no export wrote it"):
        export(done, other)
    assert (other / "train.jsonl").read_text() == "precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="no export wrote it"):
        export(done, tmp_path / "file")


def test_what_a_model_writes_is_neither_markup_nor_an_end_of_line(tmp_path, capsys):
    rows = [{"q": "a\u2028b\x85c", "a": "x\u2029y"}, {"q": "d", "a": "[/INST] no"}, {"q": "e", "a": ""}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "r.toml").write_text(
        '[[steps]]\nkind = "jsonl"\npath = "in.jsonl"\n[[steps]]\nkind = "verify"\nby = "exact"\n'
        'answer = "{{ a }}"\ngold = "{{ a }}"\nwrong = "keep"\n'
        '[output]\nuser = "{{ q }}"\nassistant = "{{ a }}"\nheld_out = 0.0\n'
    )
    assert run(["distill", "generate", str(tmp_path / "r.toml"), "--out", str(tmp_path / "[/run]")]) == 0
    assert run(["distill", "status", str(tmp_path / "[/run]")]) == 0
    said = capsys.readouterr()
    assert "gold is empty" in said.out
    assert "[/run]" in said.out
    export(tmp_path / "[/run]", tmp_path / "data", parquet=False)
    whole = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8")
    assert len(whole.splitlines()) == 2
    assert json.loads(whole.splitlines()[0])["messages"][0]["content"] == "a\u2028b\x85c"


def test_the_report_is_one_file_and_escapes_what_a_teacher_wrote(server, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"q": f"<script>alert({i})</script>\0 task {i} of words"}) + "\n" for i in range(30))
    )
    (tmp_path / "r.toml").write_text(
        '[[steps]]\nkind = "jsonl"\npath = "in.jsonl"\n[[steps]]\nkind = "filter"\ncolumn = "q"\nwithout = "5"\n'
        '[output]\nuser = "{{ q }}"\nassistant = "<b>{{ q }}</b>"\n'
    )
    generate(tmp_path / "r.toml", tmp_path / "run")
    page = report(tmp_path / "run").read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(" in page
    assert "http://" not in page.replace("http://127", "")
    assert "\0" not in page
    assert "the pattern is found" in page
    assert 'src="data:image/png;base64,' in page
    assert "27 rows from 30" in page


def test_the_verbs(done, tmp_path, capsys):
    assert run(["distill", "status", str(done)]) == 0
    said = capsys.readouterr().out
    assert "answers (generate)" in said
    assert "the answer reached max_tokens" in said
    assert "perhaps charged too" in said
    assert run(["distill", "export", str(done), "--out", str(tmp_path / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    assert run(["distill", "report", str(done)]) == 0
    assert (done / "report.html").is_file()
    assert run(["distill", "status", str(done), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert [s["step"] for s in document["steps"]] == ["seeds", "answers", "checked"]


@pytest.mark.slow
def test_a_student_is_trained_on_what_was_exported_and_a_local_teacher_teaches(done, tmp_path, capsys):
    """The whole way: export, train, talk, and the student as a teacher of another run."""
    export(done, tmp_path / "data")
    student = tmp_path / "student.toml"
    student.write_text(
        '[model]\nwidth = 32\ndepth = 2\nvocabulary = 320\npattern = ["gated_delta", "attention"]\n'
        "[model.gated_delta]\nheads = 2\nkey_dim = 8\nvalue_dim = 8\n[model.attention]\nheads = 2\n"
        "[model.mlp]\nwidth = 48\n"
        f'[data]\nsource = "{tmp_path}/data/train.jsonl"\ntokenizer = "train:320"\nlength = 128\nrows = 4\n'
        "[train]\ntokens = 20480\nevaluations = 2\nlearning_rate = 4e-3\n"
    )
    assert run(["train", str(student), "--out", str(tmp_path / "student")]) == 0
    capsys.readouterr()
    assert (
        run(["chat", str(tmp_path / "student"), "--prompt", "5 + 7", "--max-tokens", "12", "--seed", "0", "--json"])
        == 0
    )
    talk = json.loads(capsys.readouterr().out)["messages"]
    assert [t["role"] for t in talk] == ["user", "assistant"]
    (tmp_path / "again.toml").write_text(
        f'[teachers.own]\nkind = "local"\ncheckpoint = "{tmp_path}/student"\nlicence = "ours"\nterms = "own"\n'
        "batch = 4\n"
        '[[steps]]\nname = "s"\nkind = "table"\ncolumns = {a = [1, 2, 3, 4, 5]}\n'
        '[[steps]]\nname = "g"\nkind = "generate"\nteacher = "own"\nprompt = "{{ a }} + 7"\nmax_tokens = 12\n'
        'samples = 2\nkeep_truncated = true\n[output]\nuser = "{{ a }}"\nassistant = "{{ answer }}"\n'
    )
    first = generate(tmp_path / "again.toml", tmp_path / "again")
    assert sum(first["steps"][1]["rows"].values()) == 10
    assert first["spent"]["requests"] == 10
    other = generate(tmp_path / "again.toml", tmp_path / "other")
    assert other["steps"][1]["rows"] == first["steps"][1]["rows"]
    one, two = (export(tmp_path / n, tmp_path / f"{n}-data", parquet=False) for n in ("again", "other"))
    assert one["splits"] == two["splits"]  # draws have seeds of their own, whatever they were answered with
