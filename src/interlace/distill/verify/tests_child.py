"""The tests' side: runs them against a solution that is in another process; runs inside the cage.

Assertions, functions named `test...`, classes named `Test...`, `unittest` and what stands under a guard for `__main__`
are all run. The program comes to its end only if at least one assertion was reached, and none failed.
"""

from __future__ import annotations

import ast
import builtins
import io
import sys
import types
from collections.abc import Iterator
from typing import Any

from interlace.distill.verify import pytest_child
from interlace.distill.verify.exchange import DO, LIBRARY, Wire
from interlace.distill.verify.remote import Remote

EXITS = ("sys.exit", "exit", "quit")


class ProvesNothing(Exception):
    """The tests came to their end and checked nothing."""


class SolutionFailed(Exception):
    """The solution raised where it is defined."""


class TestsFailed(Exception):
    """A test that does not raise by itself."""


class Solution(types.ModuleType):
    """The module `solution` of the tests; what is set in it, as by mock.patch, is set in the real one."""

    def __setattr__(self, name: str, value: Any) -> None:
        wire = self.__dict__.get("_wire")
        if wire is not None and not name.startswith("__"):
            wire.ask("set", name, value)
        self.__dict__[name] = value


class Counted(ast.NodeTransformer):
    """Tests that count the assertions they come to, and the test functions."""

    def __init__(self, known: set[str]):
        """Of a solution with these names."""
        self.known = known

    def visit_Assert(self, node: ast.Assert) -> Any:
        """One more before it."""
        return [_call("__asserted__", node), node]

    def visit_Expr(self, node: ast.Expr) -> Any:
        """The same for self.assertEqual(...), mock.assert_called(...), pytest.raises(...)."""
        return [_call("__asserted__", node), node] if _checks(node.value) else node

    def visit_With(self, node: ast.With) -> Any:
        """And for `with self.assertRaises(...)`."""
        self.generic_visit(node)
        return [_call("__asserted__", node), node] if any(_checks(i.context_expr) for i in node.items) else node

    def visit_FunctionDef(self, node: Any) -> Any:
        """Say that it runs."""
        self.generic_visit(node)
        if node.name.startswith("test"):
            node.body.insert(1 if ast.get_docstring(node) is not None else 0, _call("__ran__", node, node.name))
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        """The solution's module may have any name that is no library's."""
        top = (node.module or "").split(".")[0]
        if (top not in sys.stdlib_module_names and {a.name for a in node.names} <= self.known) or top == "solution":
            node.module, node.level = "solution", 0
        return node


def _checks(node: ast.expr) -> bool:
    if isinstance(node, ast.Await):
        return _checks(node.value)
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name.startswith("assert") or name in ("raises", "fail")


def _bound(tree: ast.Module) -> set[str]:
    """Names that the tests give a value to."""
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return found | {
        (a.asname or a.name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }


def _call(name: str, at: ast.AST, *words: str) -> ast.stmt:
    call = ast.Call(ast.Name(name, ast.Load()), [ast.Constant(w) for w in words], [])
    return ast.copy_location(ast.Expr(call), at)


class Judge:
    """One run of the tests.

    Attributes:
        proofs: assertions that were come to.
        ran: names of the test functions that were called.
        failed: the first failure that unittest has caught.
    """

    def __init__(self, wire: Wire):
        """Nothing has run."""
        self.wire, self.module = wire, types.ModuleType("__main__")
        self.proofs, self.ran, self.failed, self.lacking = 0, set[str](), "", ""
        self.cases: set[type] = set()

    def prepare(self, tree: ast.Module) -> ast.Module:
        """Give the tests the solution's names."""
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        self.wire.tested = {n for n in used if not n.islower()}  # a function's name is no class's
        died, pairs = self.wire.ask("names")
        if died:
            raise SolutionFailed(died)
        values = {n: v for n, v in pairs if n.isidentifier() and not n.startswith("__")}
        solution = Solution("solution")
        solution.__dict__.update(values)
        ours = {n for n in values if hasattr(builtins, n) or n in sys.stdlib_module_names}
        if used & (set(values) - ours) or len(used & ours) > 1:  # `sum` alone may be what is asked for
            values = {n: v for n, v in values.items() if n not in ours}
        solution.__dict__.update({"_wire": self.wire, "__all__": sorted(set(values) - _bound(tree))})
        sys.modules |= {"__main__": self.module, "solution": solution, "pytest": pytest_child.module}
        self.module.__dict__.update(values)
        self.module.__dict__.update({n: __import__(n) for n in LIBRARY if n in used and n not in values})
        self.module.__dict__.update({"__asserted__": self.asserted, "__ran__": self.ran.add})
        self.module.__dict__["__file__"] = "tests"
        self.wire.asked = 0
        return ast.fix_missing_locations(Counted(set(solution.__dict__)).visit(tree))

    def asserted(self) -> None:
        """One more."""
        self.proofs += 1

    def main(self, *_: Any, exit: bool = True, **__: Any) -> Any:
        """What stands for unittest.main."""
        for value in list(vars(self.module).values()):
            if isinstance(value, type) and self.is_case(value) and value.__module__ == "__main__":
                self.case(value)
        if exit:
            raise SystemExit(bool(self.failed))
        return types.SimpleNamespace(result=types.SimpleNamespace(wasSuccessful=lambda: not self.failed))

    def is_case(self, value: type) -> bool:
        """Whether a class is unittest's."""
        unittest = sys.modules.get("unittest")
        return unittest is not None and issubclass(value, unittest.TestCase)

    def case(self, case: Any) -> None:
        """Run a TestCase, once."""
        if case in self.cases:
            return
        import unittest

        self.cases.add(case)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        bad = [text for _, text in result.errors + result.failures]
        if bad or result.unexpectedSuccesses:
            self.failed = self.failed or (bad[0].strip().splitlines()[-1] if bad else "a test passed that was to fail")

    def functions(self) -> Iterator[tuple[str, Any]]:
        """Test functions, also of classes, that the tests have not called themselves."""
        for name, value in list(vars(self.module).items()):
            if getattr(value, "__module__", "") != "__main__" or isinstance(value, Remote):
                continue
            if name.startswith("test") and isinstance(value, types.FunctionType) and name not in self.ran:
                yield name, value
            elif name.startswith("Test") and isinstance(value, type) and not self.is_case(value):
                for method in [m for m in dir(value) if m.startswith("test") and m not in self.ran]:
                    yield method, self.method(value, method)

    def method(self, of: Any, name: str) -> Any:
        """A test of a class, with what is to be done before and after it."""

        def run(*args: Any) -> Any:
            made = of()
            for before in ("setup_class", "setup_method"):
                pytest_child.hook(made, before)
            found = getattr(made, name)(*args)
            pytest_child.hook(made, "teardown_method")
            return found

        function = getattr(of, name)
        run.__dict__.update(vars(function))
        run.__dict__["wanted"] = pytest_child.wanted(function)[1:]
        return run

    def rest(self) -> None:
        """Run what the tests define and do not run."""
        try:
            self.main(exit=False)
            for name, function in self.functions():
                for arguments in pytest_child.arguments(function, vars(self.module)):
                    if isinstance(arguments, str):
                        self.lacking = self.lacking or f"; {name} needs {arguments}"
                        continue
                    try:
                        found = function(*arguments)
                        if isinstance(found, types.CoroutineType):
                            __import__("asyncio").run(found)
                    except pytest_child.Skipped:
                        continue
        finally:
            if self.failed:
                raise TestsFailed(self.failed)


def judge(tests: str, read: int, write: int, word: str) -> None:
    """Run tests; raises where the solution is wrong, or, with a word that it cannot know, where nothing was checked."""
    wire = Wire("__main__", read, write, dict(DO), trusting=False)
    wire.do |= {
        "describe": wire.describe,
        "print": lambda text: sys.stdout.write(text),
        "input": lambda prompt: builtins.input(prompt),
        "readline": lambda size: sys.stdin.readline(size),
        "read": lambda size: sys.stdin.read(size),
    }
    sys.stdin = io.StringIO("")
    tree = ast.parse(tests, "tests")
    found = Judge(wire)
    if "unittest" in tests:  # its import takes as long as all else
        import unittest

        unittest.main = found.main  # type: ignore[assignment]
    exits = any(
        isinstance(n, ast.Raise) or (isinstance(n, ast.Call) and ast.unparse(n.func) in EXITS) for n in ast.walk(tree)
    )
    tree = found.prepare(tree)
    try:
        exec(compile(tree, "tests", "exec"), found.module.__dict__)
    except SystemExit as end:
        if "_from_there" in vars(end):
            raise TestsFailed("the solution ended the program") from None
        if end.code not in (None, 0, False) and not found.failed:
            raise TestsFailed(f"the tests ended with {end.code}") from None
    try:
        found.rest()
    except SystemExit as end:
        raise TestsFailed(f"a test ended the program with {end.code}") from None
    if not found.proofs and not (exits and wire.asked):
        raise ProvesNothing(f"{word} the tests prove nothing: no assertion was reached{found.lacking}")
