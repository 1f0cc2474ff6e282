"""Rewrite tests to let the judge see each check: that it held, that it did not hold, or that it was skipped.

Runs inside the cage. The names that the rewritten tests call are methods of `tests_child.Judge`.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Set
from typing import Any

EXITS = ("sys.exit", "exit", "quit", "SystemExit")  # called
BROAD = ("Exception", "BaseException", "AssertionError")  # caught by who wants to report, not by who expects it
OUTSIDE = {"open", "input", "globals", "locals", "vars", "dir", "eval", "exec", "__import__"}
BUILTIN = {*dir(builtins), "__name__"} - OUTSIDE
SHOWN = 120  # letters of an assertion
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class Rewritten(ast.NodeTransformer):
    """Rewrites tests to report their checks to the judge.

    Attributes:
        tests: functions that must run, by line: those named `test...` and those with an assertion.
        asserts: (first line, last line) of assertions.
        outside: lines of assertions that are in no function.
        ends: the last line of each function, by its first line.
        raises: lines of `raise`.
        modules: the names by which the tests import the solution's module.
    """

    def __init__(self, tree: ast.Module, known: set[str], plain: set[str]):
        """known: names of the solution; plain: those of them that are values, not functions or classes."""
        self.known, self.plain = known, plain
        self.defined = {n.name for n in ast.walk(tree) if isinstance(n, Function)}
        self.imported = bound_by_import(tree)
        self.own = _constants(tree, known)
        self.telling = {n.name for n in ast.walk(tree) if isinstance(n, Function) and self._tells(n)}
        self.given: list[set[str]] = [set()]  # arguments of the functions that a statement stands in
        self.used = {
            (n.value.id, n.attr)
            for n in ast.walk(tree)
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
        }
        self.tests: dict[int, str] = {}
        self.modules: set[str] = set()
        checks: list[Any] = [n for n in ast.walk(tree) if self._is_check(n)]
        self.asserts = [(n.lineno, n.end_lineno or n.lineno) for n in checks]
        self.outside = [n.lineno for n in tree.body if isinstance(n, ast.Assert)]
        self.ends = {_first_line(n): n.end_lineno or 0 for n in ast.walk(tree) if isinstance(n, Function)}
        self.raises = {n.lineno for n in ast.walk(tree) if isinstance(n, ast.Raise)}

    # --- what a check is ----------------------------------------------------------------------------------------------

    def _about_tests(self, *nodes: ast.AST, besides: Set[str] = frozenset()) -> bool:
        """Return whether an expression is about the tests alone: constants, and names that stand for constants."""
        names = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
        return names <= (self.own | (BUILTIN - self.known) | besides)

    def _checks(self, node: ast.expr) -> bool:
        """Return whether this calls a check of unittest, mock or pytest; the tests' own functions are no checks."""
        if isinstance(node, ast.Await):
            return self._checks(node.value)
        if not isinstance(node, ast.Call):
            return False
        of = node.func
        name = of.attr if isinstance(of, ast.Attribute) else of.id if isinstance(of, ast.Name) else ""
        if name in self.defined or (isinstance(of, ast.Name) and name not in self.imported - self.known):
            return False
        if isinstance(of, ast.Attribute) and isinstance(of.value, ast.Name) and of.value.id in self.known:
            return False
        return name.startswith("assert") or name in ("raises", "fail")

    def _is_check(self, node: Any) -> bool:
        """Return whether a statement checks something and is one that a right solution reaches."""
        if isinstance(node, ast.Assert):
            return not _never(node.test)
        return isinstance(node, ast.Expr) and self._checks(node.value) and not self._refuses([node])

    def _refuses(self, statements: list[ast.stmt]) -> bool:
        """Return whether no right solution reaches these: assert False, raise, sys.exit(1), pytest.fail()."""
        return any(
            isinstance(s, ast.Raise)
            or (isinstance(s, ast.Assert) and _never(s.test))
            or (isinstance(s, ast.Expr) and (_exits_badly(s.value) or _called(s.value).split(".")[-1] == "fail"))
            for s in statements
        )

    def _only_exit(self, statements: list[ast.stmt]) -> bool:
        """Return whether these statements can only mean that a check failed, and are not a function's own error."""
        return any(
            not isinstance(s, ast.Raise) or _raised(s) in ("AssertionError", "Exception", "SystemExit")
            for s in statements
            if self._refuses([s])
        )

    def _tells(self, function: Any) -> bool:
        """Return whether what a function returns may differ."""
        found = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
        return len({ast.unparse(v) for v in found}) > 1 or any(not self._about_tests(v) for v in found)

    def _is_plain(self, node: ast.AST) -> bool:
        """Return whether an expression names a plain value of the solution: nothing need be asked."""
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        return bool(names & self.plain)

    def _held(self, node: ast.AST) -> Any:
        return _call("__held__", node, self._is_plain(node))

    # --- statements ---------------------------------------------------------------------------------------------------

    def visit_Assert(self, node: ast.Assert) -> Any:
        """Report an assertion: it counts once it has held; if it fails, the judge knows before anyone can catch it."""
        self.generic_visit(node)
        always = isinstance(node.test, ast.Tuple)  # assert (found == 3, "not three")
        good: ast.stmt = ast.Pass() if always or self._about_tests(node.test) else self._held(node.test)
        bad = [_call("__wrong__", node, _shown(node)), ast.Assert(ast.Constant(False), node.msg)]
        return ast.copy_location(ast.If(node.test, [good], bad), node)

    def visit_Expr(self, node: ast.Expr) -> Any:
        """Report checks that are calls: self.assertEqual(...), mock.assert_called(...), pytest.fail(...)."""
        if self._checks(node.value):
            return self._checking(node)
        self.generic_visit(node)
        return (
            [node, self._held(node)]
            if isinstance(node.value, ast.BoolOp | ast.IfExp)
            and any(isinstance(n, ast.expr) and _exits_badly(n) for n in ast.walk(node.value))
            and not self._about_tests(node.value)
            else node
        )

    def visit_With(self, node: Any) -> Any:
        """Report checks such as `with self.assertRaises(...)`; treat `with suppress(...)` as a try."""
        checks = any(self._checks(i.context_expr) for i in node.items)
        first = node.items[0].context_expr
        if len(node.items) == 1 and _called(first).split(".")[-1] == "suppress" and isinstance(first, ast.Call):
            handler = ast.ExceptHandler(ast.Tuple(first.args, ast.Load()), None, [ast.Pass()])
            return self.visit_Try(ast.copy_location(ast.Try(node.body, [handler], [], []), node))
        own = self._about_tests(*[a for i in node.items for a in _arguments(i.context_expr)], *node.body)
        self.generic_visit(node)
        return self._checking(node, own) if checks else node

    visit_AsyncWith = visit_With

    def _checking(self, node: Any, own: bool | None = None) -> ast.stmt:
        """Put a check inside `with __checking__(...)`."""
        own = self._about_tests(*_arguments(node.value)) if own is None else own
        contexts = [i.context_expr for i in node.items] if hasattr(node, "items") else [node]
        expects = any("AssertionError" in ast.unparse(c) for c in contexts)
        call = _call("__checking__", node, _shown(node), not own, self._is_plain(node), expects).value
        return ast.copy_location(ast.With([ast.withitem(call)], [node]), node)

    def visit_Raise(self, node: ast.Raise) -> Any:
        """Report an AssertionError that the tests raise themselves."""
        self.generic_visit(node)
        return [_call("__wrong__", node, _shown(node)), node] if _raised(node) == "AssertionError" else node

    def visit_Call(self, node: ast.Call) -> Any:
        """Report the status of sys.exit(main()), where main says whether all was well."""
        self.generic_visit(node)
        if _called(node) in EXITS and len(node.args) == 1 and not self._about_tests(node.args[0]):
            status = node.args[0]
            if _called(status) not in self.defined - self.telling:
                node.args = [ast.copy_location(ast.Call(ast.Name("__status__", ast.Load()), [status], []), status)]
        return node

    def visit_If(self, node: ast.If) -> Any:
        """Report `if found != 3: sys.exit(1)` as a check, which has held if the other branch is taken."""
        ways = [node.body, node.orelse]
        refused = [self._refuses(way) for way in ways]
        arguments = set() if self._only_exit(node.body + node.orelse) else set().union(*self.given)
        arguments -= {_called(n) for n in ast.walk(node.test) if isinstance(n, ast.expr)}
        check = any(refused) and not self._about_tests(node.test, besides=arguments)
        held = self._held(node.test)
        self.generic_visit(node)
        if check and refused[0]:
            node.orelse.insert(0, held)
        elif check:
            node.body.insert(0, held)
        return node

    def visit_Match(self, node: ast.Match) -> Any:
        """Report `case _: raise AssertionError` as a check, which has held if another case is taken."""
        refused = [self._refuses(case.body) for case in node.cases]
        held = self._held(node.subject)
        check = any(refused) and not self._about_tests(node.subject)
        self.generic_visit(node)
        for case, bad in zip(node.cases, refused, strict=True):
            if check and not bad:
                case.body.insert(0, held)
        return node

    def visit_Try(self, node: Any) -> Any:
        """Report what a handler catches: it may be an expected error, or hide an assertion that was skipped."""
        expects = self._refuses(node.body) or self._refuses(node.orelse)
        last = node.body[-1].end_lineno
        checks = [any(map(self._is_check, ast.walk(h))) for h in node.handlers]
        self.generic_visit(node)
        for handler, check in zip(node.handlers, checks, strict=True):
            if not check:
                handler.body.insert(0, _call("__caught__", node, last, _is_broad(handler), expects))
            elif expects:
                handler.body.insert(0, _call("__caught__", node, 0, False, expects))
        return node

    visit_TryStar = visit_Try

    def visit_FunctionDef(self, node: Any) -> Any:
        """Report that a test function runs."""
        inside = list(_inside(node))
        every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        self.given.append({a.arg for a in every})
        self.generic_visit(node)
        self.given.pop()
        checks = [n for n in inside if isinstance(n, ast.stmt) and (n.lineno, n.end_lineno) in self.asserts]
        if node.name.startswith("test") or checks:
            line = _first_line(node)
            self.tests[line] = node.name
            call = _call("__ran__", node, line)
            if node.args.args and node.args.args[0].arg == "self":
                call.value.args.append(ast.Name("self", ast.Load()))
            node.body.insert(1 if ast.get_docstring(node) is not None else 0, call)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    # --- the solution's module, which may have any name that is no library's ------------------------------------------

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        """Import from the solution for `from my_module import add` and `from my_module import *`."""
        top = (node.module or "").split(".")[0]
        ours = {a.name for a in node.names} <= self.known | {"*"}
        if ((node.level or not _there(top)) and ours) or top == "solution":
            self.modules.add(top)
            node.module, node.level = "solution", 0
        return node

    def visit_Import(self, node: ast.Import) -> Any:
        """Import the solution for `import my_module`, if all that is used of it is the solution's."""
        for name in node.names:
            used = {attr for of, attr in self.used if of == (name.asname or name.name)}
            if not _there(name.name.split(".")[0]) and "." not in name.name and used and used <= self.known:
                self.modules.add(name.name)
                name.asname, name.name = name.asname or name.name, "solution"
        return node


def bound(tree: ast.Module) -> set[str]:
    """Return the names that the tests give a value to."""
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found |= {n.name for n in ast.walk(tree) if isinstance(n, (*Function, ast.ClassDef))}
    return found | bound_by_import(tree)


def bound_by_import(tree: ast.Module) -> set[str]:
    """Return the names that imports bind: modules, or what is in them."""
    return {
        (a.asname or a.name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }


def _constants(tree: ast.Module, known: set[str]) -> set[str]:
    """Return the names that are given a value once, if that value is a constant."""
    stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    others = {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)} | known
    return {
        n.targets[0].id
        for n in ast.walk(tree)
        if isinstance(n, ast.Assign)
        and isinstance(n.targets[0], ast.Name)
        and isinstance(n.value, ast.Constant)
        and stored.count(n.targets[0].id) == 1
        and n.targets[0].id not in others
    }


def _inside(function: Any) -> Iterator[ast.AST]:
    """Yield all nodes of a function, without those of functions and classes in it."""
    for node in function.body:
        ahead = [node]
        while ahead:
            n = ahead.pop()
            yield n
            if not isinstance(n, (*Function, ast.ClassDef, ast.Lambda)):
                ahead += ast.iter_child_nodes(n)


def _never(test: ast.expr) -> bool:
    """Return whether an assertion can never hold: assert False, assert 0, assert not True."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return isinstance(test.operand, ast.Constant) and bool(test.operand.value)
    return isinstance(test, ast.Constant) and not test.value


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """Return whether a handler catches errors that nobody expects in particular."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(c is None or ast.unparse(c).split(".")[-1] in BROAD for c in caught)


def _called(node: ast.expr) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def _exits_badly(node: ast.expr) -> bool:
    """Return whether a call ends the program with an error: sys.exit(1), not sys.exit(0)."""
    return (
        isinstance(node, ast.Call)
        and _called(node) in EXITS
        and any(not isinstance(a, ast.Constant) or bool(a.value) for a in node.args)
    )


def _raised(node: ast.Raise) -> str:
    of = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return of.id if isinstance(of, ast.Name) else ""


def _arguments(call: Any) -> list[ast.AST]:
    """Return what a call is about: its arguments and its object."""
    call = call.value if isinstance(call, ast.Await) else call
    if not isinstance(call, ast.Call):
        return [call]
    of = [call.func.value] if isinstance(call.func, ast.Attribute) else []
    of = [o for o in of if not (isinstance(o, ast.Name) and o.id in ("self", "pytest"))]
    return [*of, *call.args, *(k.value for k in call.keywords)] or [ast.Constant(None)]


def _first_line(function: Any) -> int:
    """Return the first line of a function as its code object has it, decorators included."""
    return int(min(n.lineno for n in (function, *function.decorator_list)))


def _there(module: str) -> bool:
    """Return whether the cage has such a module."""
    return module in sys.stdlib_module_names or module == "pytest"


def _shown(node: ast.stmt) -> str:
    text = ast.unparse(node).split("\n")[0]
    return f"line {node.lineno}: {text[:SHOWN]}"


def _call(name: str, at: ast.AST, *words: Any) -> Any:
    call = ast.Call(ast.Name(name, ast.Load()), [ast.Constant(w) for w in words], [])
    return ast.copy_location(ast.Expr(call), at)
