"""Whether a program is right by its tests: the two run in a cage each, and only plain values pass between them.

The verdict is the tests' own process coming to its end, which says a secret that the solution's process never holds.
What a solution does to its interpreter (ending it, another AssertionError, another checker, a hook, a trace) it does to
itself alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from interlace.distill.verify import cage

PLACE = "interlace.distill.verify"
NOTHING = "ProvesNothing: "
GONE = "SolutionGone: "


class NothingProved(Exception):
    """The tests came to their end without one check."""


def check(solution: str, tests: str, limits: cage.Limits | None = None) -> cage.Outcome:
    """Run tests against a solution. "passed" is a proof: at least one check was made, and none failed.

    Each side has the limits to itself; they share a folder.

    Raises:
        NothingProved: no assertion was reached.
        BackendUnavailable: this system has no such locks; nothing was run.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{cage.PREFIX}{os.getpid()}-"))
    to_solution, from_tests = os.pipe()
    to_tests, from_solution = os.pipe()
    sides = (
        (_program("solution_child", "serve", solution, to_solution, from_solution), (to_solution, from_solution)),
        (_program("tests_child", "judge", tests, to_tests, from_tests), (to_tests, from_tests)),
    )
    try:
        with ThreadPoolExecutor(2) as pool:
            served, judged = pool.map(lambda side: cage.run(side[0], limits, wires=side[1], folder=folder), sides)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if judged.kind == "failed" and judged.why.startswith(NOTHING):
        raise NothingProved(judged.why.removeprefix(NOTHING))
    if judged.kind == "failed" and judged.why.startswith(GONE):
        kind = "ended early" if served.kind == "passed" else served.kind
        return cage.Outcome(kind, served.why or "the solution ended its process", judged.output, judged.seconds)
    return judged


def _program(name: str, function: str, text: str, read: int, write: int) -> str:
    """The source of one side: our modules, which cannot be imported in there, and a call."""
    texts = {f"{PLACE}.{n}": Path(__file__).with_name(f"{n}.py").read_text("utf-8") for n in _needs(name)}
    return (
        f"import sys, types\ntexts = {texts!r}\n"
        "for name, text in texts.items():\n"
        "    made = sys.modules[name] = types.ModuleType(name)\n"
        "    parent, _, last = name.rpartition('.')\n"
        "    setattr(sys.modules.setdefault(parent, types.ModuleType(parent)), last, made)\n"
        "    exec(compile(text, name, 'exec'), made.__dict__)\n"
        f"made.{function}({text!r}, {read}, {write})\n"
    )


def _needs(name: str) -> list[str]:
    return ["exchange", *(["pytest_child"] if name == "tests_child" else []), name]
