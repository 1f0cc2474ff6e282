"""Judge a program by its tests: the two run in a cage each, and only plain values pass between them.

A program passes when the tests' own process comes to its end and reports a secret that the solution's process never
holds. Whatever a solution does to its interpreter (end it, replace AssertionError or a checker, set a hook or a trace)
affects itself alone.
"""

from __future__ import annotations

import marshal
import os
import secrets
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from interlace.sandbox import cage

PLACE = "interlace.verify"
NOTHING = "ProvesNothing: "
GONE = "SolutionGone: "


class NothingProved(Exception):
    """It cannot be said whether the solution is right: no check was made, one was missed, or a value cannot cross."""


def check(solution: str, tests: str, limits: cage.CageLimits | None = None) -> cage.CageOutcome:
    """Run tests against a solution. "passed" is a proof: a check of the solution has held, none failed, all tests ran.

    Each side has the limits to itself; they share a folder.

    Raises:
        NothingProved: no assertion was reached, a test was not run, or the two need what cannot cross.
        BackendUnavailable: this system has no such locks; nothing was run.
    """
    word = secrets.token_hex(8)
    folder = Path(tempfile.mkdtemp(prefix=f"{cage.PREFIX}{os.getpid()}-"))
    to_solution, from_tests = os.pipe()
    to_tests, from_solution = os.pipe()
    sides = (
        (_program("solution_child", "serve", (solution, to_solution, from_solution)), (to_solution, from_solution)),
        (_program("tests_child", "judge", (tests, to_tests, from_tests, word)), (to_tests, from_tests)),
    )
    try:
        with ThreadPoolExecutor(2) as pool:
            served, judged = pool.map(lambda side: cage.run(side[0], limits, wires=side[1], folder=folder), sides)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if judged.kind == "failed" and judged.why.startswith(f"{NOTHING}{word} "):
        raise NothingProved(judged.why.removeprefix(f"{NOTHING}{word} "))
    if judged.kind == "failed" and judged.why.startswith(GONE):
        kind = "ended early" if served.kind == "passed" else served.kind
        return cage.CageOutcome(kind, served.why or "the solution ended its process", judged.output, judged.seconds)
    return judged


def _program(name: str, function: str, arguments: tuple[object, ...]) -> str:
    """Return the source of one side: our modules, which cannot be imported in the cage, and a call."""
    return f"{_modules(name)}made.{function}{arguments!r}\n"


@cache
def _modules(name: str) -> str:
    """Return source that makes modules of ours, compiled already; it names the last one `made`."""
    names = [
        "remote",
        "crossing",
        "exchange",
        *(["pytest_child", "rewrite_child"] if name == "tests_child" else []),
        name,
    ]
    codes = {}
    for n in names:
        file = Path(__file__).with_name(f"{n}.py")
        codes[f"{PLACE}.{n}"] = marshal.dumps(compile(file.read_text("utf-8"), n, "exec"))
    return (
        f"import marshal, sys, types\ncodes = {codes!r}\n"
        "for name, code in codes.items():\n"
        "    made = sys.modules[name] = types.ModuleType(name)\n"
        "    parent, _, last = name.rpartition('.')\n"
        "    setattr(sys.modules.setdefault(parent, types.ModuleType(parent)), last, made)\n"
        "    exec(marshal.loads(code), made.__dict__)\n"
    )
