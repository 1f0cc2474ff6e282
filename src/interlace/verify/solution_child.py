"""The solution's process: run a model's code, then do what its tests ask for; runs inside the cage."""

from __future__ import annotations

import builtins
import io
import os
import sys
import types
from typing import Any

from interlace.verify.exchange import DO, SolutionGone, Wire


class Printing(io.TextIOBase):
    """Standard output that sends what is printed to the tests."""

    def __init__(self, wire: Wire):
        """wire: the connection to the tests."""
        self.wire = wire

    def write(self, text: str) -> int:
        """Send text to the tests."""
        with self.wire.turn:
            self.wire.send(["print", str(text)])
        return len(text)


class Reading(io.TextIOBase):
    """Standard input that the tests provide."""

    def __init__(self, wire: Wire):
        """wire: the connection to the tests."""
        self.wire = wire

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        """Return one line."""
        return str(self.wire.ask("readline", size))

    def read(self, size: int | None = -1) -> str:
        """Return all the input."""
        return str(self.wire.ask("read", size))


def serve(solution: str, read: int, write: int) -> None:
    """Run the solution as a module of its own, and answer until the tests have ended."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    wire = Wire("solution", read, write, dict(DO), trusting=True)
    printed, given = sys.stdout, sys.stdin
    sys.stdout, sys.stdin = io.StringIO(), io.StringIO("")
    died = ""
    try:
        exec(compile(solution, "solution", "exec", dont_inherit=True), module.__dict__)
    except MemoryError:
        raise
    except SystemExit as end:  # what stands after its functions may end it well
        died = "" if end.code in (None, 0, False) else f"SystemExit: {end.code}"
    except BaseException as error:
        died = f"{type(error).__name__}: {error}"
    wire.do["describe"] = wire.describe
    wire.do["names"] = lambda: [died, [[n, v] for n, v in names(module)]]
    wire.do["set"] = lambda name, value: setattr(module, name, value)
    sys.stdout, sys.stdin = Printing(wire), Reading(wire)
    builtins.input = lambda prompt="": wire.ask("input", str(prompt))
    try:
        while True:
            kind, *rest = wire.receive()
            if kind == "ask":
                wire.answer(*rest)
    except SolutionGone:  # the tests have ended
        sys.stdout, sys.stdin = printed, given
        os._exit(0)


def names(module: types.ModuleType) -> list[tuple[str, Any]]:
    """Return (name, value) of all that the solution defines, without modules it has imported."""
    return [
        (n, v) for n, v in list(vars(module).items()) if not n.startswith("__") and not isinstance(v, types.ModuleType)
    ]
