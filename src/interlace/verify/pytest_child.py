"""The part of pytest that tests use most, for a place with only Python's library; runs inside the cage."""

from __future__ import annotations

import io
import math
import re
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any


class Skipped(BaseException):
    """A test is skipped and does not count."""


class Lacking(Exception):
    """A test needs something that is missing here."""


class Raises:
    """The context of `with pytest.raises(ValueError, match="odd") as info`."""

    def __init__(self, kinds: Any, match: str | None = None):
        """kinds: one class of errors, or several."""
        self.kinds, self.match, self.value = kinds, match, None

    def __enter__(self) -> Raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, _: Any) -> bool:
        if kind is None:
            raise AssertionError(f"did not raise {self.kinds}")
        self.value, self.type, self.typename = value, kind, kind.__name__
        if issubclass(kind, self.kinds) and self.match is not None and not re.search(self.match, str(value)):
            raise AssertionError(f"{self.match!r} is not in {str(value)!r}")
        return issubclass(kind, self.kinds)


def raises(kinds: Any, *call: Any, match: str | None = None, **more: Any) -> Any:
    """Expect an error, as a context, or of a function called with its arguments."""
    if not call:
        return Raises(kinds, match)
    with Raises(kinds) as info:
        call[0](*call[1:], **more)
    return info


class approx:
    """Equal within a millionth, or as given; compares numbers, and lists and mappings of them."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False):
        """The arguments are those of pytest.approx."""
        self.expected, self.rel, self.abs, self.nan_ok = expected, rel, abs, nan_ok

    def __eq__(self, other: object) -> bool:
        return self._near(other, self.expected)

    def _near(self, found: Any, expected: Any) -> bool:
        if isinstance(expected, dict):
            return (
                isinstance(found, dict)
                and found.keys() == expected.keys()
                and all(self._near(found[k], v) for k, v in expected.items())
            )
        if isinstance(expected, list | tuple):
            return (
                isinstance(found, list | tuple)
                and len(found) == len(expected)
                and all(map(self._near, found, expected))
            )
        if not isinstance(found, int | float) or not isinstance(expected, int | float):
            return bool(found == expected)
        if math.isnan(expected):
            return self.nan_ok and math.isnan(found)
        rel = self.rel if self.rel is not None else 0.0 if self.abs is not None else 1e-6
        return math.isclose(found, expected, rel_tol=0, abs_tol=max(rel * abs(expected), self.abs or 1e-12))


class Mark:
    """`pytest.mark`: parametrize and skip; other marks change nothing."""

    def __getattr__(self, name: str) -> Any:
        def mark(*args: Any, **_: Any) -> Any:
            return args[0] if len(args) == 1 and callable(args[0]) else lambda function: function

        return mark

    def skip(self, *_: Any, **__: Any) -> Any:
        """Skip the test."""
        return lambda function: skip

    def xfail(self, *_: Any, **__: Any) -> Any:
        """Skip the test: one that is expected to fail proves nothing."""
        return _[0] and skip if _ and callable(_[0]) else self.skip()

    def skipif(self, condition: Any, **_: Any) -> Any:
        """Skip the test if the condition is true; a condition that is text is ignored."""
        return self.skip() if condition and not isinstance(condition, str) else lambda function: function

    def usefixtures(self, *names: str) -> Any:
        """Name fixtures that a test needs and does not take as arguments."""

        def of(function: Any) -> Any:
            function.uses = [*getattr(function, "uses", []), *names]
            return function

        return of

    def parametrize(self, names: Any, values: Any, indirect: Any = False, **_: Any) -> Callable[..., Any]:
        """Run the test once for each row of values; `indirect` names are parameters of fixtures."""
        columns = [n.strip() for n in names.split(",") if n.strip()] if isinstance(names, str) else list(names)
        through = columns if indirect is True else indirect or ()
        columns = [f"{c} param" if c in through else c for c in columns]
        rows = [v.values if isinstance(v, Row) else v if len(columns) > 1 else (v,) for v in values]

        def of(function: Any) -> Any:
            cases = [dict(zip(columns, r, strict=True)) for r in rows]
            before = getattr(function, "cases", [{}])
            function.cases = [a | b for a in before for b in cases]
            return function

        return of


class Row:
    """A row of values for `parametrize`: `pytest.param(1, 2)`."""

    def __init__(self, *values: Any, **_: Any):
        """Store the values of one case."""
        self.values = values


def fixture(function: Any = None, **options: Any) -> Any:
    """Mark a function as a fixture: what it returns, or yields first, is given to tests."""
    if function is None:
        return lambda f: fixture(f, **options)
    function.fixture = options
    return function


def fail(reason: str = "", **_: Any) -> None:
    """Let the test fail."""
    raise AssertionError(reason)


def skip(reason: str = "", **_: Any) -> None:
    """Skip the test from inside."""
    raise Skipped(reason)


def wanted(function: Any) -> list[str]:
    """Return the names of the arguments that a function must be given; a method's object comes first."""
    code, defaults = function.__code__, function.__defaults__ or ()
    return list(code.co_varnames[: code.co_argcount - len(defaults)])


class Session:
    """The tests of a module, with their fixtures and what is called before and after them."""

    def __init__(self, module: types.ModuleType):
        """Begin with no test run."""
        self.module, self.begun = module, False
        self.classes: list[type] = []
        self.kept: dict[Any, Any] = {}  # fixtures of a wider scope than one test
        self.ends: list[Any] = []

    def run(self, test: Any, of: type | None) -> None:
        """Run a test, once for each case; `of` is the class whose method it is."""
        if not self.begun:
            self.begun = True
            hook(self.module, "setup_module", self.module)
        if of is not None and of not in self.classes:
            self.classes.append(of)
            hook(of, "setup_class")
        rows = [a | b for a in getattr(of, "cases", [{}]) for b in getattr(test, "cases", [{}])]
        for name in self._all(test, of):
            params = self._found(name, of).fixture.get("params") if self._found(name, of) else None
            rows = [r | {f"{name} param": p} for r in rows for p in params] if params else rows
        if not rows:
            raise Lacking("it has no cases")
        for row in rows:
            Case(self, of, row).run(test)

    def end(self) -> None:
        """Run what is due after the last test."""
        for made in reversed(self.ends):
            next(made, None)
        for of in self.classes:
            hook(of, "teardown_class")
        if self.begun:
            hook(self.module, "teardown_module", self.module)

    def _found(self, name: str, of: type | None) -> Any:
        """Return the fixture of this name, or None."""
        for place in (of, self.module):
            for key in dir(place) if place is not None else ():
                value = getattr(place, key)
                if isinstance(getattr(value, "fixture", None), dict) and value.fixture.get("name", key) == name:
                    return value
        return None

    def first(self, test: Any, of: type | None) -> list[str]:
        """Return the names of fixtures that are made before a test even if it does not take them."""
        found = [
            value.fixture.get("name", key)
            for place in (self.module, of)
            for key, value in list(vars(place).items() if place is not None else ())
            if isinstance(getattr(value, "fixture", None), dict) and value.fixture.get("autouse")
        ]
        return [*found, *getattr(of, "uses", []), *getattr(test, "uses", [])]

    def _all(self, test: Any, of: type | None) -> list[str]:
        """Return the names of all fixtures and values that a test needs, also through others."""
        found = list(dict.fromkeys([*self.first(test, of), *wanted(test)]))
        for name in found:
            fixture = self._found(name, of)
            found += [n for n in (wanted(fixture) if fixture else []) if n not in found]
        return found


class Case:
    """One case of a test."""

    def __init__(self, session: Session, of: type | None, row: dict[str, Any]):
        """row: the values of `parametrize` and the parameters of fixtures."""
        self.session, self.of, self.row = session, of, row
        self.made: dict[str, Any] = {}
        self.ends: list[Any] = []

    def run(self, test: Any) -> None:
        """Call the test with its fixtures, and with what is called before and after it."""
        on = self.of() if self.of is not None else None
        place, kind = (self.session.module, "function") if on is None else (on, "method")
        self.made |= {"self": on, "cls": self.of}
        try:
            for name in self.session.first(test, self.of):
                self.give(name)
            hook(place, f"setup_{kind}", test)
            found = test(*[self.give(n) for n in wanted(test)])
            if isinstance(found, types.CoroutineType):
                found = __import__("asyncio").run(found)
            elif isinstance(found, types.GeneratorType):
                raise Lacking("it is a generator")
            if found is False:
                raise AssertionError(f"{test.__name__} returned False")
            hook(place, f"teardown_{kind}", test)
        finally:
            for made in reversed(self.ends):
                next(made, None)

    def give(self, name: str, asking: str = "") -> Any:
        """Return the value of an argument."""
        if name in self.row:
            return self.row[name]
        if name == "request":
            return types.SimpleNamespace(param=self.row.get(f"{asking} param"), getfixturevalue=self.give)
        if name not in self.made:
            self.made[name] = self._make(name)
        return self.made[name]

    def _make(self, name: str) -> Any:
        fixture = self.session._found(name, self.of)
        if fixture is None:
            if name not in GIVEN:
                raise Lacking(f"it needs an argument {name!r}")
            made: Any = GIVEN[name]()
            self.ends.append(made)
            return next(made)
        scope = fixture.fixture.get("scope", "function")
        key = (name, self.of if scope == "class" else None, repr(self.row.get(f"{name} param")))
        if scope != "function" and key in self.session.kept:
            return self.session.kept[key]
        made = fixture(*[self.give(n, name) for n in wanted(fixture)])
        if isinstance(made, types.GeneratorType):
            (self.ends if scope == "function" else self.session.ends).append(made)
            made = next(made)
        elif isinstance(made, types.CoroutineType | types.AsyncGeneratorType):
            raise Lacking(f"its fixture {name!r} waits")
        if scope != "function":
            self.session.kept[key] = made
        return made


def hook(of: Any, name: str, *about: Any) -> None:
    """Call a setup or teardown function of a module or a class, if there is one."""
    function = getattr(of, name, None)
    if function is not None:
        method = isinstance(function, types.MethodType)
        function(*about[: len(wanted(function.__func__ if method else function)) - method])


def tmp_path() -> Iterator[Any]:
    """Give the cage's folder, emptied first; no folder can be made in it."""
    folder = __import__("pathlib").Path.cwd()
    if not folder.name.startswith("interlace-cage-"):
        raise Lacking("there is no cage")
    for file in folder.iterdir():
        file.unlink()
    yield folder


class Captured:
    """What was printed, as `capsys` gives it."""

    def readouterr(self) -> Any:
        """Return (out, err): what was printed since the last call."""
        of: Any = {"out": sys.stdout, "err": sys.stderr}
        said = {name: stream.getvalue() for name, stream in of.items()}
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        return namedtuple("Said", said)(**said)


def capsys() -> Iterator[Captured]:
    """Give the output that is printed during a test; nothing is shown meanwhile."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    yield Captured()
    sys.stdout, sys.stderr = before


class Patches:
    """`monkeypatch`: attributes and items set for one test."""

    def __init__(self) -> None:
        """Begin with nothing set."""
        self.undone: list[Callable[[], Any]] = []

    def setattr(self, of: Any, name: Any, *value: Any, raising: bool = True) -> None:
        """Set an attribute of an object, or the attribute that a dotted name means."""
        if not value:
            path, value = of, (name,)
            module, _, name = path.rpartition(".")
            of = __import__(module, fromlist=["x"])
        old = getattr(of, name, None) if not raising else getattr(of, name)
        setattr(of, name, value[0])
        self.undone.append(lambda: setattr(of, name, old))

    def setitem(self, of: Any, key: Any, value: Any) -> None:
        """Set an item of a mapping."""
        had, old = key in of, of.get(key)
        of[key] = value
        self.undone.append(lambda: of.__setitem__(key, old) if had else of.pop(key, None))


def monkeypatch() -> Iterator[Patches]:
    """Give a `Patches`, and undo it at the end of the test."""
    made = Patches()
    yield made
    for undo in reversed(made.undone):
        undo()


GIVEN: dict[str, Callable[[], Iterator[Any]]] = {"tmp_path": tmp_path, "capsys": capsys, "monkeypatch": monkeypatch}


def importorskip(name: str, **_: Any) -> Any:
    """Return a module, or skip the test."""
    try:
        return __import__(name)
    except ImportError:
        return skip(name)


module = types.ModuleType("pytest")
module.__dict__.update(
    {f.__name__: f for f in (raises, approx, fixture, fail, skip, importorskip)}
    | {"mark": Mark(), "param": Row, "main": lambda *_, **__: 0}
)
