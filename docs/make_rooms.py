"""docs/rooms.md from the rooms' docstrings and their floors: `python docs/make_rooms.py > docs/rooms.md`.

The docstrings of `src/interlace/*/__init__.py` are read without being imported; the floors are the layers of the import
contract in pyproject.toml. A test holds the page to this script."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "interlace"

HEAD = """# Rooms

Made by `python docs/make_rooms.py > docs/rooms.md`.

A room is a folder of `src/interlace/`. A room imports rooms on lower floors only; rooms on one floor do not import each
other. `lint-imports` checks both. The top floor comes first.

| floor | room | what it does | inside |
|--:|---|---|---|
"""

TAIL = """
Beside the package:

| folder | |
|---|---|
| `src/native/` | the CPU kernels in C++, one file for each operator ([README](../src/native/README.md)) |
| `tests/` | folders named like the rooms; `laws/` for operators and models, `peers/` compares with other code |
| `benchmarks/` | one script for each claim of speed, memory or accuracy ([performance.md](performance.md)) |
| `recipes/` | whole runs to copy and start from; `interlace recipes` lists them |
| `docs/` | these pages; `make_*.py` print the pages that are made from docstrings |

To follow one forward pass, read `model/model.py`, then `layers/block.py`, `layers/gated_delta.py` and
`ops/gated_delta/` with its [README](../src/interlace/ops/gated_delta/README.md).
"""


def floors() -> list[list[str]]:
    """The rooms of each floor, the top one first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = contracts[0]["layers"]  # of the whole package; the others are of single rooms
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def paragraphs(room: str) -> list[str]:
    """Those of a room's docstring, each on one line."""
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    return [" ".join(part.split()) for part in said.split("\n\n")]


def page() -> str:
    """The whole of docs/rooms.md."""
    lines, stack = [], floors()
    for depth, rooms in enumerate(stack):
        for room in rooms:
            first, *more = paragraphs(room)
            lines.append(f"| {len(stack) - depth} | `{room}/` | {first} | {' '.join(more)} |\n")
    return HEAD + "".join(lines) + TAIL


if __name__ == "__main__":
    print(page(), end="")
