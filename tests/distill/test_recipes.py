"""The recipes that users start from run as they are, against the simulated teacher."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from interlace.cli.main import run
from interlace.distill.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def teachers(name):
    return list(read_recipe(RECIPES / name / "recipe.toml").teachers)


@pytest.mark.parametrize("name", ["distill-instructions", "distill-maths", "distill-refine"])
def test_a_recipe_runs_exports_and_reports(name, server, tmp_path, capsys):
    sim = server()
    urls = [f"teachers.{t}.base_url={sim.url}" for t in teachers(name)]
    file, out = str(RECIPES / name / "recipe.toml"), str(tmp_path / "run")
    assert run(["distill", "generate", file, *urls, "--dry-run", "--json"]) == 0
    most = json.loads(capsys.readouterr().out)["total"]
    assert run(["distill", "generate", file, *urls, "--out", out, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert all(s["done"] for s in document["steps"])
    last = document["steps"][-1]
    assert last["rows"]["ok"] >= 1
    assert sim.stats()["counts"]["received"] <= 1.1 * most["requests"]  # some answers hold no new task
    assert document["spent"]["cost"] <= most["most"]
    assert run(["distill", "export", out, "--out", str(tmp_path / "data")]) == 0
    assert run(["distill", "report", out]) == 0
    rows = [
        json.loads(x) for n in ("train", "held_out") for x in (tmp_path / f"data/{n}.jsonl").read_text().splitlines()
    ]
    assert len(rows) == last["rows"]["ok"]


def test_maths_keeps_right_answers_with_their_reasoning_and_no_benchmark(server, tmp_path, capsys):
    sim = server()
    file = str(RECIPES / "distill-maths" / "recipe.toml")
    run(
        ["distill", "generate", file, f"teachers.reasoner.base_url={sim.url}", "--out", str(tmp_path / "run"), "--json"]
    )
    steps = {s["step"]: s["rows"] for s in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["untouched"] == {"ok": 9, "dropped": 1}
    assert steps["right"]["ok"] + steps["right"].get("dropped", 0) == 36
    run(["distill", "export", str(tmp_path / "run"), "--out", str(tmp_path / "data"), "--no-parquet"])
    text = (tmp_path / "data/train.jsonl").read_text() + (tmp_path / "data/held_out.jsonl").read_text()
    for row in map(json.loads, text.splitlines()):
        assert row["gold"] in row["messages"][1]["content"]
        assert row["messages"][1]["reasoning_content"].endswith(f"makes {row['gold']}.")


def test_the_page_of_steps_is_current():
    docs = RECIPES.parent / "docs"
    spec = importlib.util.spec_from_file_location("make_steps", docs / "make_steps.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (docs / "steps.md").read_text() == module.page(), "python docs/make_steps.py > docs/steps.md"


@pytest.mark.slow
def test_the_folder_of_the_loop_trains_asks_and_checks(tmp_path, monkeypatch, capsys):
    """In small: the teacher learns nothing in so few steps, so that its answers are kept unverified."""
    folder = tmp_path / "loop"
    shutil.copytree(RECIPES / "distill-loop", folder)
    spec = importlib.util.spec_from_file_location("make_problems", folder / "make_problems.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    for name, value in (("GOLD", 300), ("ASKED", 12), ("HELD_OUT", 8)):
        monkeypatch.setattr(maker, name, value)
    monkeypatch.setattr(sys, "argv", ["make_problems.py", str(folder / "work")])
    maker.main()
    parts = {n: (folder / "work" / f"{n}.jsonl").read_text().splitlines() for n in ("gold", "asked", "held_out")}
    assert [len(p) for p in parts.values()] == [300, 12, 8]
    questions = [
        json.loads(x).get("question") or json.loads(x)["messages"][0]["content"] for p in parts.values() for x in p
    ]
    assert len(set(questions)) == 320
    for line in parts["asked"]:
        row = json.loads(line)
        assert int(row["gold"]) == sum(map(int, row["question"].split("+")))
    gold = f"data.source={folder / 'work' / 'gold.jsonl'}"
    assert (
        run(["train", str(folder / "teacher.toml"), gold, "train.tokens=8192", "--out", str(folder / "teacher")]) == 0
    )
    teacher = f"teachers.own.checkpoint={folder / 'teacher'}"
    capsys.readouterr()
    for name in ("unverified", "recipe"):
        command = [
            "distill",
            "generate",
            str(folder / f"{name}.toml"),
            teacher,
            "--out",
            str(tmp_path / "run"),
            "--json",
        ]
        assert run(command) == 0
        found = json.loads(capsys.readouterr().out)
        assert sum(found["steps"][1]["rows"].values()) == 12
        assert found["spent"]["requests"] == 12  # the second recipe asks nothing that the first has asked
    assert (
        run(["distill", "generate", str(folder / "evaluate.toml"), teacher, "--out", str(tmp_path / "e"), "--json"])
        == 0
    )
    assert sum(json.loads(capsys.readouterr().out)["steps"][2]["rows"].values()) <= 8
    unread = str(folder / "work" / "gold.jsonl")
    assert run(["train", str(folder / "student.toml"), f"data.source={unread}", "--dry-run", "--json"]) == 0
