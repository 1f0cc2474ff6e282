"""Recipes travel with the package, and the package says what it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import interlace
from interlace.base.errors import Failure
from interlace.cli.main import run
from interlace.cli.recipes import home
from interlace.cli.train import train
from interlace.train.recipe import read_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def files(folder):
    """Contents by path below a folder."""
    found = (p for p in Path(folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_all_recipes_are_listed(capsys):
    assert run(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert {r["name"] for r in listed} == {p.stem for p in RECIPES.iterdir()}
    assert {name for r in listed for name in r["files"]} == set(files(RECIPES))
    assert all(r["about"] for r in listed)
    assert run(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(r["name"] in out for r in listed)


@pytest.mark.parametrize("name", ["hybrid-small", "student", "distill-maths"])
def test_a_recipe_is_copied_whole_and_nothing_is_overwritten(name, tmp_path, capsys):
    mine = tmp_path / "new" / "mine"
    assert run(["recipes", name, "--out", str(mine)]) == 0
    if mine.is_dir():
        assert files(mine) == files(RECIPES / name)
    else:
        assert mine.read_bytes() == (RECIPES / f"{name}.toml").read_bytes()
    capsys.readouterr()
    assert run(["recipes", name, "--out", str(mine)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["distill-maths", "distill-refine", "distill-instructions"])
def test_what_a_copy_begins_with_can_be_run_in_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", name]) == 0
    assert f"{name}/recipe.toml begins with how to start" in capsys.readouterr().out
    monkeypatch.chdir(name)
    said = re.findall(r"^# +interlace (.*)$", Path("recipe.toml").read_text(), re.MULTILINE)
    assert said[0].endswith("--dry-run")
    assert run(said[0].split()) == 0


def test_the_loop_says_what_it_needs_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["recipes", "distill-loop"]) == 0
    monkeypatch.chdir("distill-loop")
    head = re.findall(r"^#   (.*)$", Path("recipe.toml").read_text(), re.MULTILINE)
    assert head[0] == "python make_problems.py work"
    subprocess.run([sys.executable, *head[0].split()[1:]], check=True)
    assert run([*head[1].split()[1:], "--dry-run"]) == 0
    assert run(head[2].split()[1:]) == 2
    assert "runs/teacher" in capsys.readouterr().err  # which the command before makes
    outputs = [re.search(r"--out (\S+)", command)[1] for command in head[1:]]
    assert outputs == ["runs/teacher", "runs/answers", "data", "runs/student"]


def test_the_first_example_of_train_can_be_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = re.search(r"interlace (train recipes/\S+ .*--dry-run)", train.__doc__)[1]
    assert run([*command.split(), "--json"]) == 0


def test_a_folder_without_a_recipe_is_none(tmp_path, monkeypatch, capsys):
    shutil.copytree(RECIPES, tmp_path / "interlace/recipes")
    (tmp_path / "interlace/recipes/__pycache__").mkdir()
    monkeypatch.setattr(interlace, "__file__", str(tmp_path / "interlace/__init__.py"))
    assert run(["recipes"]) == 0
    assert "pycache" not in capsys.readouterr().out


def test_a_recipe_that_is_not_there_is_named_with_those_that_are(tmp_path, capsys):
    assert run(["recipes", "hybrid-smal", "--out", str(tmp_path / "mine")]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'hybrid-small'" in said
    assert "distill-maths" in said
    assert not (tmp_path / "mine").exists()


def test_what_is_installed_holds_the_recipes(tmp_path, monkeypatch):
    """The build without kernels installs the recipes inside the package, where they are found before the checkout's."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    build, site = tmp_path / "build", tmp_path / "site"
    for command in (
        ["cmake", "-S", str(ROOT / "src/native"), "-B", str(build), "-DINTERLACE_NATIVE=off"],
        ["cmake", "--install", str(build), "--prefix", str(site)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    assert files(site / "interlace/recipes") == files(RECIPES)
    monkeypatch.setattr(interlace, "__file__", str(site / "interlace/__init__.py"))
    assert home() == site / "interlace/recipes"


def test_a_package_without_recipes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(interlace, "__file__", str(tmp_path / "lib/site/interlace/__init__.py"))
    with pytest.raises(Failure, match=r"^recipes: .* was installed without them; install interlace again$"):
        home()


def test_the_student_learns_from_what_distill_exports(tmp_path, capsys):
    turns = ({"role": "user", "content": "7 + 5?"}, {"role": "assistant", "content": "12"})
    rows = [json.dumps({"messages": turns})] * 8
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    given = f"data.source={tmp_path / 'train.jsonl'}"
    assert read_recipe(RECIPES / "student.toml").data.source == ("data/maths/train.jsonl",)
    assert run(["train", str(RECIPES / "student.toml"), given, "--dry-run", "--json"]) == 0
    size = json.loads(capsys.readouterr().out)["parameters"]
    (said,) = re.findall(r"([\d.]+) million parameters", (RECIPES / "student.toml").read_text())
    assert float(said) == round(size / 1e6, 1)


def test_the_package_says_what_it_is():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for key in ("name", "description", "readme", "license", "license-files", "authors", "keywords", "classifiers"):
        assert about[key], key
    assert (ROOT / about["readme"]).is_file()
    pythons = [c for c in about["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert pythons[0].endswith(about["requires-python"].removeprefix(">="))
