"""Modules that are named in strings exist, and lie where an import could reach them: contracts cannot see them."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

from interlace.base.package import VERSION

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "interlace"
NAME = re.compile(r"interlace(?:\.[A-Za-z_]\w*)+")
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
FLOOR = {room: -i for i, rooms in enumerate(LAYERS) for room in rooms.split(" | ")}


def strings():
    """(file, string, whether it is prose) of every string in the package that names a module of it."""
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        owners = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        prose = {id(n.body[0].value) for n in owners if n.body and isinstance(n.body[0], ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in NAME.findall(node.value):
                    yield file.relative_to(SOURCE), name, id(node) in prose


def exists(name):
    """Whether a dotted name is a module, or what one holds."""
    for cut in (name, name.rpartition(".")[0]):
        try:
            if cut.count(".") and importlib.util.find_spec(cut) is not None:
                return cut == name or hasattr(importlib.import_module(cut), name.rpartition(".")[2])
        except ModuleNotFoundError:
            continue
    return False


def test_modules_that_are_named_exist_and_lie_downward():
    found, wrong = sorted(set(strings()), key=str), []
    named = {name for _, name, prose in found if not prose}  # children of the sandbox, verbs, cells of a study
    assert {"interlace.sandbox.template_child", "interlace.verify.child", "interlace.study.tasks.cell"} <= named
    for file, name, prose in found:
        begins_others = name.endswith("_")  # of an f-string
        if not (exists(name) or begins_others or name.split(".")[1] not in FLOOR):
            wrong.append(f"{file} names {name}, which does not exist")
        rooms = (file.parts[0], name.split(".")[1])
        if not prose and all(room in FLOOR for room in rooms):
            here, there = (FLOOR[room] for room in rooms)
            if there >= here and rooms[0] != rooms[1]:
                wrong.append(f"{file} names {name}, which lies above it")
    assert not wrong


def test_the_version_is_stated_twice_and_is_the_same():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
