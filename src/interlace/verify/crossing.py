"""Move values between the tests and the solution: plain values are copied, others stay and are known by a number.

Runs inside the cage, on both sides.
"""

from __future__ import annotations

import builtins
import importlib
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import Any

from interlace.verify.remote import (
    OPERATORS,
    Remote,
    RemoteClass,
    RemoteFunction,
    contains,
    operator,
)

LIBRARY = (  # modules whose names mean the same on both sides, and have no way to claim equality or end a process
    *("abc", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions"),
    *("functools", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re", "statistics"),
    *("string", "time", "typing"),
)
SEQUENCES: dict[str, Any] = {k.__name__: k for k in (list, tuple, set, frozenset, deque)}
MAPPINGS = {k.__name__: k for k in (dict, Counter, OrderedDict)}
PARTS = {  # what values of the library are made of
    "fractions.Fraction": ("numerator", "denominator"),
    "datetime.date": ("year", "month", "day"),
    "datetime.time": ("hour", "minute", "second", "microsecond", "tzinfo"),
    "datetime.datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo"),
    "zoneinfo.ZoneInfo": ("key",),
    "uuid.UUID": ("hex",),
    "datetime.timedelta": ("days", "seconds", "microseconds"),
    "builtins.range": ("start", "stop", "step"),
    "builtins.slice": ("start", "stop", "step"),
    "builtins.complex": ("real", "imag"),
}
PATHS = ("PosixPath", "PurePosixPath", "PureWindowsPath")
VIEWS = {f"dict_{n}": n for n in ("keys", "values", "items")}
COROUTINE = 0x80  # inspect.CO_COROUTINE, whose module takes long to import
INVISIBLE = (StopIteration, StopAsyncIteration)  # out of a call they would end a loop of the caller's


class Crossing:
    """What one side knows of the other side's values.

    Attributes:
        own: name of the module whose classes are this side's own.
        held: values that the other side knows of, by number.
        tested: names of classes that the tests are about; these may answer comparisons themselves.
        beyond: what was needed and cannot cross; "" if nothing.
    """

    def __init__(self, own: str, trusting: bool):
        """trusting: whether the other side may do anything that Python allows with the values held here."""
        self.own, self.trusting = own, trusting
        self.held: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}
        self.remotes: dict[int, Any] = {}
        self.classes: dict[int, type] = {}
        self.named: dict[tuple[str, ...], type] = {}
        self.tested: set[str] = set()
        self.beyond = ""

    def ask(self, what: str, *args: Any, **more: Any) -> Any:
        """Ask the other side to do something, and return its result."""
        raise NotImplementedError

    def hold(self, value: Any) -> int:
        """Return a value's number; the value is kept alive, and no other value gets its number."""
        number = self.numbers.setdefault(id(value), len(self.numbers))
        self.held[number] = value
        return number

    def pack(self, v: Any, whole: bool = False) -> Any:
        """Return a value as JSON.

        whole: v was made by calling a class of its owner. It then crosses as an object, even if that class is a kind of
            list or number (`class Stack(list)`), so that its own methods can be called. Elsewhere such a value crosses
            as the plain list or number it is.
        """
        if v is None or v is True or v is False:
            return v
        kind: Any = type(v)
        if v is NotImplemented or v is Ellipsis:
            return ["constant", str(v)]
        if isinstance(v, types.TracebackType):
            return None
        if isinstance(v, BaseException):
            return ["error", self._raised(v)]
        if isinstance(v, Remote):
            return ["own", object.__getattribute__(v, "_number")]
        if isinstance(v, RemoteClass):
            if "_number" not in v.__dict__:
                self.beyond = f"{v.__name__} of the tests is made from a class of the solution, in another process"
                raise TypeError(self.beyond)
            return ["own", v.__dict__["_number"]]
        whole = whole and kind.__module__ == self.own and (not hasattr(kind, "_fields") or _has_methods(kind))
        if not whole and not hasattr(kind, "__members__"):
            plain = self._plain(v, kind)
            if plain is not None:
                return plain
        module, name = (v.__module__, v.__qualname__) if isinstance(v, type) else ("", "")
        if module == "builtins" and getattr(builtins, name, None) is v:
            return ["builtin", name]
        if module.split(".")[0] in LIBRARY:
            return ["library", module, name]
        what = "class" if isinstance(v, type) else "call" if callable(v) else "object"
        if getattr(getattr(v, "__code__", None), "co_flags", 0) & COROUTINE:
            what = "wait"
        return ["remote", self.hold(v), what, self.hold(kind) if kind.__module__ == self.own else None]

    def _plain(self, v: Any, kind: type) -> Any:
        if isinstance(v, int):
            number = int.__pos__(v)
            return number if abs(number) < 1 << 53 else ["int", hex(number)]
        if isinstance(v, float):
            return float.__pos__(v)
        if isinstance(v, str):
            return str.__str__(v)
        if isinstance(v, bytes | bytearray):
            return ["bytes" if isinstance(v, bytes) else "bytearray", v.hex()]
        if isinstance(v, tuple) and hasattr(kind, "_fields"):
            return ["fields", kind.__name__, list(kind._fields), [self.pack(x) for x in tuple.__iter__(v)]]
        for name, sequence in SEQUENCES.items():
            if isinstance(v, sequence):
                return [name, [self.pack(x) for x in sequence.__iter__(v)]]
        if kind is defaultdict:
            return ["defaultdict", self.pack(v.default_factory), [[self.pack(a), self.pack(b)] for a, b in v.items()]]
        if kind.__name__ in VIEWS and kind.__module__ == "builtins":
            return ["view", VIEWS[kind.__name__], [self.pack(x) for x in v]]
        if kind.__module__ == "pathlib" and kind.__name__ in PATHS:
            return ["path", kind.__name__, str(v)]
        if isinstance(v, dict):
            name = kind.__name__ if MAPPINGS.get(kind.__name__) is kind else "dict"
            return [name, [[self.pack(a), self.pack(b)] for a, b in dict.items(v)]]
        name = f"{kind.__module__}.{kind.__name__}"
        if name == "decimal.Decimal":
            return ["decimal", str(v)]
        if name == "datetime.timezone":
            return ["zone", v.utcoffset(None).total_seconds()]
        if name in PARTS:
            parts = [self.pack(getattr(v, p)) for p in PARTS[name]]
            return ["parts", name, parts] if not any(isinstance(p, list) and p[0] == "remote" for p in parts) else None
        return None

    def open(self, v: Any) -> Any:
        """Return the value that `pack` made this JSON from."""
        if not isinstance(v, list):
            return v
        kind, *a = v
        if kind in SEQUENCES:
            return SEQUENCES[kind]([self.open(x) for x in a[0]])
        if kind in MAPPINGS:
            return MAPPINGS[kind]({self.open(x): self.open(y) for x, y in a[0]})
        if kind == "int":
            return int(a[0], 16)
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind).fromhex(a[0])
        if kind == "fields":
            key = (a[0], *a[1])
            if key not in self.named:
                self.named[key] = namedtuple(a[0], a[1])
            return self.named[key](*[self.open(x) for x in a[2]])
        if kind == "decimal":
            return importlib.import_module("decimal").Decimal(a[0])
        if kind == "parts" and a[0] in PARTS:
            module, name = a[0].split(".")
            return getattr(importlib.import_module(module), name)(*map(self.open, a[1]))
        if kind == "zone":
            datetime = importlib.import_module("datetime")
            return datetime.timezone(datetime.timedelta(seconds=a[0]))
        if kind == "path" and a[0] in PATHS:
            return getattr(importlib.import_module("pathlib"), a[0])(a[1])
        if kind == "defaultdict":
            return defaultdict(self.open(a[0]), {self.open(x): self.open(y) for x, y in a[1]})
        if kind == "view":
            content: Any = [self.open(x) for x in a[1]]
            if a[0] == "values":
                return dict(enumerate(content)).values()
            return dict(content).items() if a[0] == "items" else dict.fromkeys(content).keys()
        if kind == "constant":
            return {"NotImplemented": NotImplemented, "Ellipsis": Ellipsis}[a[0]]
        if kind == "error":
            return self._error("next", a[0])
        if kind == "own":
            return self.held[a[0]]
        if kind in ("builtin", "library"):
            found = getattr(builtins if kind == "builtin" else importlib.import_module(known(a[0])), a[-1])
            if isinstance(found, type):
                return found
            raise TypeError(f"{a[-1]} is no class")
        number, what, of = a
        if what == "class":
            return self.class_of(number)
        if what == "wait":
            return self._waiting(number)
        cls = self.class_of(of) if of is not None else RemoteFunction if what == "call" else Remote
        if isinstance(cls, type) and issubclass(cls, BaseException):
            cls = Remote
        return self.remote(cls, number)

    def remote(self, cls: type, number: int) -> Any:
        """Return an instance of a Remote's class; the same object always gets the same instance."""
        if number not in self.remotes:
            made: Any = object.__new__(cls)
            object.__setattr__(made, "_number", number)
            object.__setattr__(made, "_wire", self)
            self.remotes[number] = made
        return self.remotes[number]

    def _waiting(self, number: int) -> Any:
        of = self.remote(RemoteFunction, number)

        async def wait(*args: Any, **more: Any) -> Any:
            return self.ask("run", of, *args, **more)

        return wait

    def class_of(self, number: int) -> type:
        """Return a class that stands for one of the other side, with its bases and its operators."""
        made: Any
        if number not in self.classes:
            name, bases, builtin, has = self.ask("describe", ["own", number])
            of: list[type] = [self.class_of(b) for b in bases]
            of += [getattr(builtins, b) for b in builtin if not of]
            if any(issubclass(b, BaseException) for b in of):
                body: dict[str, Any] = {"__str__": lambda e: e.__dict__.get("_said") or BaseException.__str__(e)}
                made = type(str(name), tuple(of), body)
                made._number = number
            else:
                body = {f"__{n}__": operator(n) for n in has if n in OPERATORS}
                if "eq" in has:
                    body["__hash__"] = lambda o: hash(self.ask("hash", o))
                elif has:
                    body["__hash__"] = Remote.__hash__
                tested = self.trusting or name in self.tested
                if not tested and "contains" in has:
                    body["__contains__"] = contains
                body |= {"_tested": tested, "_number": number, "_wire": self, "__init__": lambda *_, **__: None}
                body["__new__"] = lambda cls, *args, **more: self.ask("call", cls, *args, **more)
                made = RemoteClass(str(name), tuple(of) or (Remote,), body)
            self.classes[number] = made
        return self.classes[number]

    def describe(self, cls: type) -> Any:
        """Describe an own class: [name, numbers of its bases, the builtin exceptions it is, its operators]."""
        bases = [self.hold(b) for b in cls.__bases__ if b.__module__ == self.own]
        errors = [b.__name__ for b in cls.__mro__ if issubclass(b, BaseException) and b.__module__ == "builtins"]
        has = [n for n in OPERATORS if any(f"__{n}__" in k.__dict__ for k in cls.__mro__ if k is not object)]
        return [cls.__name__, bases, errors[:1], has]

    def _kinds(self, cls: type) -> list[Any]:
        """Return the classes by which the other side can know a class of error, the nearest first."""
        found = [self.pack(k) for k in cls.__mro__ if k.__module__.split(".")[0] in (self.own, "builtins", *LIBRARY)]
        return [["own", cls.__dict__["_number"]], *found] if "_number" in cls.__dict__ else found

    def _raised(self, error: BaseException) -> list[Any]:
        """Return an error as JSON, with the error that caused it."""
        values = {k: self.pack(v) for k, v in vars(error).items() if k != "_said"}
        cause = None if error.__cause__ is None else self._raised(error.__cause__)
        return [self._kinds(type(error)), [self.pack(a) for a in error.args], values, str(error), cause]

    def _error(self, what: str, raised: list[Any]) -> BaseException:
        kinds, args, values, said, cause = raised
        cls = next(
            (k for k in map(self.open, kinds) if isinstance(k, type) and issubclass(k, BaseException)), Exception
        )
        if issubclass(cls, INVISIBLE) and what not in ("next", "anext"):
            cls, args = RuntimeError, [f"the solution raised {cls.__name__}"]
        given = [self.open(a) for a in args]
        try:
            error = cls(*given)
        except TypeError:  # it wants other arguments than it keeps
            error = cls.__new__(cls, *given)
        for name, value in values.items():
            error.__dict__[name] = self.open(value)
        error.__dict__["_said"] = said
        error.__dict__["_from_there"] = True
        error.__cause__ = None if cause is None else self._error("next", cause)
        return error


def _has_methods(kind: type) -> bool:
    """Return whether a named tuple has methods or properties of its own."""
    methods = (types.FunctionType, property, classmethod, staticmethod)
    return any(isinstance(v, methods) and not n.startswith("_") for n, v in vars(kind).items())


def known(module: Any) -> str:
    """Return the name of a module if both sides may import it, or raise ImportError."""
    if str(module).split(".")[0] not in LIBRARY:
        raise ImportError(f"{module!r} is not imported for a solution")
    return str(module)
