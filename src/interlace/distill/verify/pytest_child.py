"""What tests use of pytest most, where only Python's library is at hand; runs inside the cage."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterator
from typing import Any


class Skipped(Exception):
    """A test that is not to count."""


class Raises:
    """`with pytest.raises(ValueError, match="odd") as info`."""

    def __init__(self, kinds: Any, match: str | None = None):
        """One class of errors, or several."""
        self.kinds, self.match, self.value = kinds, match, None

    def __enter__(self) -> Raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, _: Any) -> bool:
        if kind is None:
            raise AssertionError(f"did not raise {self.kinds}")
        self.value, self.type = value, kind
        if issubclass(kind, self.kinds) and self.match is not None and not re.search(self.match, str(value)):
            raise AssertionError(f"{self.match!r} is not in {str(value)!r}")
        return issubclass(kind, self.kinds)


def raises(kinds: Any, *call: Any, match: str | None = None, **more: Any) -> Any:
    """As a context, or with a function and its arguments."""
    if not call:
        return Raises(kinds, match)
    with Raises(kinds) as info:
        call[0](*call[1:], **more)
    return info


class approx:
    """Equal within a millionth, or as said; of numbers, and of lists and mappings of them."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False):
        """As pytest.approx."""
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
        """It is not run."""
        return lambda function: skip

    def parametrize(self, names: Any, values: Any, **_: Any) -> Callable[..., Any]:
        """Once for each row of values."""
        columns = [n.strip() for n in names.split(",") if n.strip()] if isinstance(names, str) else list(names)
        rows = [v.values if isinstance(v, Row) else v if len(columns) > 1 else (v,) for v in values]

        def of(function: Any) -> Any:
            cases = [dict(zip(columns, r, strict=True)) for r in rows]
            before = getattr(function, "cases", [{}])
            function.cases = [a | b for a in before for b in cases]
            return function

        return of


class Row:
    """`pytest.param(1, 2)`."""

    def __init__(self, *values: Any, **_: Any):
        """The values of one case."""
        self.values = values


def fixture(function: Any = None, **_: Any) -> Any:
    """What it returns, or yields first, is a test's argument."""
    if function is None:
        return fixture
    function.fixture = True
    return function


def fail(reason: str = "", **_: Any) -> None:
    """The test fails."""
    raise AssertionError(reason)


def skip(reason: str = "", **_: Any) -> None:
    """The test does not count."""
    raise Skipped(reason)


def hook(of: Any, name: str) -> None:
    """Call what a class has its tests begin or end with."""
    function = getattr(of, name, None)
    if function is not None:
        function(*[None for _ in wanted(function)[1:]])


def wanted(function: Any) -> list[str]:
    """Names of the arguments that a function must be given; of a method, its object first."""
    if "wanted" in vars(function):
        return list(vars(function)["wanted"])
    code, defaults = function.__code__, function.__defaults__ or ()
    return list(code.co_varnames[: code.co_argcount - len(defaults)])


def arguments(function: Any, names: dict[str, Any]) -> Iterator[list[Any] | str]:
    """The arguments of each case of a test, or what it lacks."""
    for case in getattr(function, "cases", [{}]):
        found = []
        for name in wanted(function):
            if name in case:
                found.append(case[name])
            elif getattr(names.get(name), "fixture", False):
                found.append(_made(names[name], names))
            else:
                yield f"an argument {name!r}"
                break
        else:
            yield found


def _made(of: Any, names: dict[str, Any]) -> Any:
    given = next(iter(arguments(of, names)))
    if isinstance(given, str):
        raise TypeError(f"a fixture needs {given}")
    found = of(*given)
    return next(found) if isinstance(found, types.GeneratorType) else found


def importorskip(name: str, **_: Any) -> Any:
    """A module, or the test is skipped."""
    try:
        return __import__(name)
    except ImportError:
        return skip(name)


module = types.ModuleType("pytest")
module.__dict__.update(
    {f.__name__: f for f in (raises, approx, fixture, fail, skip, importorskip)}
    | {"mark": Mark(), "param": Row, "main": lambda *_, **__: 0}
)
