"""The tests' process: run tests against a solution that is in another process; runs inside the cage.

Assertions, functions named `test...`, classes named `Test...`, `unittest` and what stands under a guard for `__main__`
are all run. The program comes to its end only if a check of the solution has held, every test was run, and no check has
failed, even if the tests caught its error.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interlace.verify import pytest_child
from interlace.verify.crossing import LIBRARY
from interlace.verify.exchange import DO, SolutionGone, Wire
from interlace.verify.remote import Remote, RemoteClass
from interlace.verify.rewrite_child import Rewritten, bound

APART = {  # what a solution has in a process of its own
    "the state of random, which the solution has in another process": re.compile(r"\brandom\.seed\("),
    "the environment, which the solution has in another process": re.compile(r"\benviron\b|\bsetenv\b|\bchdir\b"),
    "what is logged, in another process": re.compile(r"\bassertLogs\b|\blogging\b|\bcaplog\b"),
    "warnings, which are given in another process": re.compile(r"\bwarnings\b|\bassertWarns|\bpytest\.warns\b"),
    "standard error, which the solution has in another process": re.compile(r"stderr"),
    "what a function is inside, in another process": re.compile(r"\binspect\b|__code__|\bgc\b|\btracemalloc\b"),
    "what a dataclass is made of, in another process": re.compile(r"\b(asdict|astuple|is_dataclass)\b|dataclasses\."),
    "what is patched, in another process": re.compile(
        r"\bpatch(\.object|\.dict|\.multiple)?\((?!\s*[\"'](solution\.\w+[\"']|builtins\.input|sys\.std(in|out)))"
    ),
}


class ProvesNothing(Exception):
    """The tests came to their end, but it cannot be said whether the solution is right."""


class SolutionFailed(Exception):
    """The solution raised an error while it was defined."""


class TestsFailed(Exception):
    """A test failed without raising an error itself."""


class Solution(types.ModuleType):
    """The module `solution` of the tests; what is set in it, as by mock.patch, is set in the real one."""

    def __setattr__(self, name: str, value: Any) -> None:
        wire = self.__dict__.get("_wire")
        if wire is not None and not name.startswith("__"):
            wire.ask("set", name, value)
        self.__dict__[name] = value


class Judge:
    """One run of the tests.

    Attributes:
        proofs: how many checks have held that depend on the solution.
        ran: lines of the test functions that were called, each with the class of its object.
        failed: the first check that did not hold, even if its error was caught.
        doubt: why nothing can be said although no check has failed.
    """

    def __init__(self, wire: Wire):
        """Begin with no test run."""
        self.wire, self.module = wire, types.ModuleType("__main__")
        self.proofs, self.ran, self.failed, self.doubt = 0, set[tuple[int, type]](), "", ""
        self.lacking: dict[str, str] = {}
        self.cases: set[type] = set()

    def prepare(self, tree: ast.Module) -> ast.Module:
        """Give the tests the solution's names, and return the rewritten tests."""
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        self.wire.tested = {n for n in used if not n.islower()}  # a function's name is no class's
        died, pairs = self.wire.ask("names")
        if died:
            raise SolutionFailed(died)
        values = {n: v for n, v in pairs if n.isidentifier() and not n.startswith("__")}
        solution = Solution("solution")
        solution.__dict__.update(values)
        plain = {n for n, v in values.items() if not isinstance(v, Remote | RemoteClass)}
        self.tests = Rewritten(tree, set(values), plain)
        ours = {n for n in values if hasattr(builtins, n) or n in sys.stdlib_module_names}
        if used & (set(values) - ours) or len(used & ours) > 1:  # `sum` alone may be what is asked for
            values = {n: v for n, v in values.items() if n not in ours}
        solution.__dict__.update({"_wire": self.wire, "__all__": sorted(set(values) - bound(tree))})
        sys.modules |= {"__main__": self.module, "solution": solution, "pytest": pytest_child.module}
        self.module.__dict__.update(values)
        self.module.__dict__.update({n: __import__(n) for n in LIBRARY if n in used and n not in values})
        for said in (self.held, self.wrong, self.checking, self.caught, self.status):
            self.module.__dict__[f"__{said.__name__}__"] = said
        self.module.__dict__["__ran__"] = lambda line, of=None: self.ran.add((line, type(of)))
        self.module.__dict__["__file__"] = "tests"
        self.wire.asked = 0
        tree = ast.fix_missing_locations(self.tests.visit(tree))
        sys.modules |= dict.fromkeys(self.tests.modules, solution)
        return tree

    # --- what the rewritten tests say ---------------------------------------------------------------------------------

    def held(self, direct: bool = False) -> None:
        """Record that a check has held.

        It is a proof if the solution was asked for something, or given as a value (`direct`).
        """
        if self.wire.asked or direct:
            self.proofs += 1

    def wrong(self, check: str) -> None:
        """Record that a check has not held.

        Inside a call that the solution made, the solution may be meant to catch it, so it only raises a doubt.
        """
        if self.wire.answering:
            self.doubt = self.doubt or f"a check did not hold in a call that the solution made: {check}"
        else:
            self.failed = self.failed or check

    @contextmanager
    def checking(self, check: str, counts: bool, direct: bool, expects: bool) -> Iterator[None]:
        """Record whether a check that is a call holds; with `expects`, its AssertionError is no failure."""
        before = self.failed
        try:
            yield
        except AssertionError as error:
            if "_from_there" not in vars(error):
                self.wrong(check)
            raise
        if expects:
            self.failed = before
        if counts:
            self.held(direct)

    def caught(self, last: int, broad: bool, expects: bool) -> None:
        """Record what a handler of a `try` has caught.

        Args:
            last: the last line of the `try`; 0 for a handler that makes a check itself.
            expects: whether the code after the call that raised is there to report that it did not raise.
            broad: whether the handler catches anything, also errors that the tests raise because a check has not held.
        """
        error = sys.exc_info()[1]
        there = "_from_there" in vars(error)
        if expects and there:
            self.held()
        own = isinstance(error, AssertionError) or type(error).__module__ == "__main__"
        if last and self._passed_by(error, last, (broad or own) and not there):
            self.doubt = self.doubt or f"the tests caught {type(error).__name__}: {error}, and passed a check by"

    def _passed_by(self, error: Any, last: int, ours: bool) -> bool:
        """Return whether an assertion after the place that raised was skipped, in the `try` or a function.

        ours: the error is the tests' own; then a `raise` counts as an assertion.
        """
        trace = error.__traceback__
        while trace is not None:
            code, line = trace.tb_frame.f_code, trace.tb_lineno
            if code.co_filename == "tests":
                if any(first <= last and line <= end for first, end in self.tests.asserts):
                    return True
                if ours and trace.tb_next is None and line in self.tests.raises:
                    return True
            trace = trace.tb_next
            if trace is not None:
                last = self.tests.ends.get(trace.tb_frame.f_code.co_firstlineno, 0)
        return False

    def status(self, code: Any) -> Any:
        """Return the exit status of the tests; it counts as a check if it depends on the solution."""
        if code is not None:
            self.held()
        return code

    # --- what is run --------------------------------------------------------------------------------------------------

    def watch(self, tests: str) -> None:
        """Make the library report failures: unittest, and threads."""
        if "unittest" in tests:  # its import takes as long as all else
            import unittest

            unittest.main = self.main  # type: ignore[assignment]
            unittest.expectedFailure = unittest.skip("it is expected to fail")  # type: ignore[assignment]
            self.hear(unittest.TestResult)
        if "thread" in tests.lower():
            import threading

            def died(of: Any) -> None:
                self.failed = self.failed or f"{of.exc_type.__name__} in a thread: {of.exc_value}"

            threading.excepthook = died

    def hear(self, result: Any) -> None:
        """Record failures and skipped tests of a unittest result, whoever runs them."""

        def bad(_: Any, error: Any) -> None:
            if error is not None:
                self.failed = self.failed or f"{error[0].__name__}: {error[1]}"

        def skipped(test: Any, reason: str) -> None:
            self.lacking.setdefault(str(getattr(test, "_testMethodName", test)), f"skipped: {reason}")

        def also(name: str, say: Any) -> None:
            plain = getattr(result, name)

            def method(found: Any, *about: Any) -> None:
                say(*about)
                plain(found, *about)

            setattr(result, name, method)

        also("addError", bad)
        also("addFailure", bad)
        also("addSubTest", lambda _, subtest, error: bad(subtest, error))
        also("addSkip", skipped)

    def main(self, *_: Any, exit: bool = True, **__: Any) -> Any:
        """Stand in for unittest.main."""
        for value in list(vars(self.module).values()):
            if isinstance(value, type) and self.is_case(value) and value.__module__ == "__main__":
                self.case(value)
        if exit:
            raise SystemExit(bool(self.failed))
        return types.SimpleNamespace(result=types.SimpleNamespace(wasSuccessful=lambda: not self.failed))

    def is_case(self, value: type) -> bool:
        """Return whether a class is a unittest.TestCase."""
        unittest = sys.modules.get("unittest")
        return unittest is not None and issubclass(value, unittest.TestCase)

    def case(self, case: Any) -> None:
        """Run a TestCase, once."""
        if case not in self.cases:
            import unittest

            self.cases.add(case)
            unittest.defaultTestLoader.loadTestsFromTestCase(case).run(unittest.TestResult())

    def functions(self, of: Any, called: set[tuple[int, type]]) -> Iterator[tuple[str, Any, Any]]:
        """Yield the test functions of a module or a class, and of classes in it, that the tests have not called."""
        inside = isinstance(of, type)
        for name in dir(of) if inside else list(vars(of)):
            value = getattr(of, name)
            if getattr(value, "__module__", "") != "__main__" or isinstance(value, Remote):
                continue
            value = getattr(value, "__func__", value)  # a class method is given its class, as an argument
            if name.startswith("test") and isinstance(value, types.FunctionType):
                line = first_line(value)
                if (line, of if inside else type(None)) not in called:
                    yield name, value, of if inside else None
            elif name.startswith("Test") and isinstance(value, type) and not self.is_case(value):
                yield from self.functions(value, called)

    def rest(self) -> None:
        """Run the tests that are defined and have not been run."""
        called = set(self.ran)
        self.main(exit=False)
        session = pytest_child.Session(self.module)
        try:
            for name, function, of in self.functions(self.module, called):
                try:
                    session.run(function, of)
                except (pytest_child.Skipped, pytest_child.Lacking) as error:
                    self.lacking.setdefault(name, str(error))
        finally:
            session.end()

    def verdict(self) -> None:
        """Raise if a check has not held, or if it cannot be said that all have."""
        if self.failed:
            raise TestsFailed(self.failed)
        ran = {line for line, _ in self.ran}
        missed = {name: "" for line, name in self.tests.tests.items() if line not in ran} | self.lacking
        said = "; ".join(f"{name} was not run" + (f" ({why})" if why else "") for name, why in missed.items())
        if not self.proofs:
            why = f"; {self.doubt or said}" if self.doubt or said else ""
            raise ProvesNothing(f"the tests prove nothing: no assertion was reached{why}")
        if self.doubt or said:
            raise ProvesNothing(f"the tests prove too little: {self.doubt or said}")


def first_line(function: Any) -> int:
    """Return the first line of a function, without its wrappers."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return int(function.__code__.co_firstlineno)


def judge(tests: str, read: int, write: int, word: str) -> None:
    """Run tests; raise if the solution is wrong, or if nothing can be said.

    word: a secret that the solution cannot know; it begins the message if nothing can be said.
    """
    wire = Wire("__main__", read, write, dict(DO), trusting=False)
    wire.do |= {
        "describe": wire.describe,
        "print": lambda text: sys.stdout.write(text),
        "input": lambda prompt: builtins.input(prompt),
        "readline": lambda size: sys.stdin.readline(size),
        "read": lambda size: sys.stdin.read(size),
    }
    sys.stdin = io.StringIO("")
    found = Judge(wire)
    found.watch(tests)
    tree = found.prepare(ast.parse(tests, "tests"))
    try:
        run(found, compile(tree, "tests", "exec"))  # annotations are not evaluated, as in this file
        found.verdict()
    except ProvesNothing as error:
        raise ProvesNothing(f"{word} {error}") from None
    except SolutionGone:
        raise
    except BaseException as error:
        apart = [f"the tests rely on {what}" for what, sign in APART.items() if sign.search(tests)]
        if wire.beyond or apart:
            raise ProvesNothing(f"{word} not checked: {wire.beyond or apart[0]}") from None
        if isinstance(error, pytest_child.Skipped | pytest_child.Lacking):
            raise ProvesNothing(f"{word} not checked: {error}") from None
        if isinstance(error, ImportError) and "_from_there" not in vars(error):
            raise ProvesNothing(f"{word} not checked: the tests cannot import: {error}") from None
        raise


def run(found: Judge, code: types.CodeType) -> None:
    """Run all of the tests."""
    try:
        exec(code, found.module.__dict__)
    except SystemExit as end:
        if "_from_there" in vars(end):
            raise TestsFailed("the solution ended the program") from None
        if end.code not in (None, 0, False) and not found.failed:
            raise TestsFailed(f"the tests ended with {end.code}") from None
        line = end.__traceback__.tb_next.tb_lineno if end.__traceback__ and end.__traceback__.tb_next else 0
        if any(line < first for first in found.tests.outside):
            found.doubt = found.doubt or f"the tests ended themselves in line {line}, before an assertion"
    try:
        found.rest()
    except SystemExit as end:
        raise TestsFailed(f"a test ended the program with {end.code}") from None
