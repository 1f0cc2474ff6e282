"""Files of the project that its scripts, pages and source name exist: nothing else sees a path in a shell script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATH = re.compile(r"(?<![\w/.-])(?:src/interlace|src/native|tests|docs|benchmarks|recipes)/[\w./*-]*[\w*]")
SCRIPTS = [".ci/run", "src/native/sanitize", "src/native/CMakeLists.txt", "pyproject.toml", ".github/workflows/ci.yml"]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md"), *ROOT.glob("benchmarks/*.md")]
SOURCE = [*ROOT.glob("src/**/*.py"), *ROOT.glob("src/native/*.cpp"), *ROOT.glob("src/native/*.h")]


@pytest.mark.parametrize("kind", ["scripts", "pages", "source"])
def test_a_file_that_is_named_exists(kind):
    files = {"scripts": [ROOT / name for name in SCRIPTS], "pages": PAGES, "source": SOURCE}[kind]
    named = {(path, file) for file in files for path in PATH.findall(file.read_text(encoding="utf-8"))}
    assert len(named) >= 5
    missing = sorted(f"{f.relative_to(ROOT)} names {path}" for path, f in named if not list(ROOT.glob(path)))
    assert not missing
