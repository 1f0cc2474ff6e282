"""Stand-ins for objects of the other process; runs inside the cage.

Whether a Remote equals a plain value is decided in the process that asks. The other side's answer counts only for a
class that the tests are about, and only if the object does not compare with all values alike.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from typing import Any

COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
INDEX = ("getitem", "setitem", "delitem", "contains", "exit", "format", "round")  # told no expected value
BINARY = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "or", "xor"),
    "matmul",
)
OTHERS = (
    *("len", "bool", "int", "float", "complex", "index", "abs", "neg", "pos", "invert", "trunc", "floor", "ceil"),
    *("enter", "reversed", *BINARY, *(f"r{n}" for n in BINARY), *(f"i{n}" for n in BINARY)),
)
OPERATORS = COMPARE + INDEX + OTHERS
WAITING = ("aiter", "anext", "aenter", "aexit")  # of async for and async with
PLAIN = (  # give something plain
    *("abs", "bool", "len", "int", "float", "complex", "index", "trunc", "floor", "ceil", "round", "contains"),
)
ANSWERS = ("startswith", "endswith", "issubset", "issuperset", "isdisjoint", "equals")  # methods told what is expected
NAMED = ("__name__", "__qualname__", "__doc__")
ASKED = (*NAMED, "__dict__", "__annotations__", "__wrapped__")  # of what has an underscore
PRIMES = (100_003, 300_007, 500_009, 700_001, 900_001, 1_100_009, 1_300_021)  # equal to none modulo a small number
FAR = 10**15


def _asked(name: str) -> Any:
    return property(lambda self: self._wire.ask("getattr", self, name))


class Remote:
    """A stand-in for an object of the other side."""

    _number: int
    _wire: Any  # the exchange.Wire that asks
    _tested = False  # whether its class is what the tests are about
    _told = False  # it was made from a plain value of the tests (found - 3), so that it may know what they expect

    __dict__ = _asked("__dict__")

    def __getattr__(self, name: str) -> Any:
        if (name.startswith("__") and name not in ASKED) or (name in ANSWERS and not self._tested):
            raise AttributeError(name)
        return self._wire.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._wire.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._wire.ask("delattr", self, name)

    def __copy__(self) -> Any:
        return self._wire.ask("copy", self)

    def __deepcopy__(self, _: Any) -> Any:
        return self._wire.ask("deepcopy", self)

    def __iter__(self) -> Any:
        return self._wire.ask("iter", self)

    def __aiter__(self) -> Any:
        return self._wire.ask("dunder", self, "aiter")

    async def __anext__(self) -> Any:
        return self._wire.ask("anext", self)

    async def __aenter__(self) -> Any:
        return self._wire.ask("await", self, "aenter")

    async def __aexit__(self, *error: Any) -> bool:
        return bool(self._wire.ask("await", self, "aexit", *error))

    def __next__(self) -> Any:
        return self._wire.ask("next", self)

    def __call__(self, *args: Any, **more: Any) -> Any:
        return self._wire.ask("call", self, *args, **more)

    def __enter__(self) -> Any:
        return self._wire.ask("dunder", self, "enter")

    def __exit__(self, *error: Any) -> bool:
        return bool(self._wire.ask("dunder", self, "exit", *error))

    def __str__(self) -> str:
        return str(self._wire.ask("str", self))

    def __repr__(self) -> str:
        return str(self._wire.ask("repr", self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


class RemoteFunction(Remote):
    """A stand-in for a function, which binds as functions in a class do."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


for _class in (Remote, RemoteFunction):
    _class.__doc__, _class.__annotations__ = _asked("__doc__"), _asked("__annotations__")


class RemoteClass(type):
    """The type of stand-ins for classes of the other side."""

    _number: int
    _wire: Any  # the exchange.Wire that asks

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls._wire.ask("getattr", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._wire.ask("setattr", cls, name, value)

    def __iter__(cls) -> Any:
        return cls._wire.ask("iter", cls)

    def __len__(cls) -> int:
        return int(cls._wire.ask("dunder", cls, "len"))

    def __getitem__(cls, key: Any) -> Any:
        return cls._wire.ask("item", cls, key)


def operator(name: str) -> Callable[..., Any]:
    """Return a method for an operator of a Remote's class.

    A plain value that the object is compared with, or that is subtracted from it, may be the expected value. It is
    shown only to a class that the tests are about, and that object must tell it from other values.
    """

    def method(self: Remote, *args: Any) -> Any:
        strange = bool(args) and not isinstance(args[0], Remote) and name not in INDEX
        if strange and name in COMPARE:
            if self._tested:
                return compared(self, name, args[0])
            self._wire.beyond = f"{type(self).__name__} of the solution says itself what it equals"
            return NotImplemented
        if self._told and name in PLAIN:  # abs(found - 3): it would say what the solution wants it to
            raise TypeError(f"__{name}__ of a solution's object that was told a value")
        found = self._wire.ask("dunder", self, name, *args)
        if self._tested:
            return found
        if isinstance(found, Remote) and (strange or self._told):
            object.__setattr__(found, "_told", True)
        return NotImplemented if strange and not isinstance(found, Remote) else found

    return method


def compared(self: Remote, name: str, value: Any) -> Any:
    """Return how an object compares with a plain value, if it compares otherwise with other values.

    The object is asked about all of them in random order: it cannot know which one is meant.
    """
    wire = self._wire
    if wire.trusting:
        return wire.ask("dunder", self, name, value)
    if name in ("eq", "ne"):
        false, true = (others(value), []) if name == "eq" else ([], others(value))
    else:
        small, large = beside(value)
        false, true = (small, large) if name in ("lt", "le") else (large, small)
    if not false and not true:
        return NotImplemented
    asked = [(value, None), *((o, False) for o in false), *((o, True) for o in true)]
    found = None
    for other, due in sorted(asked, key=lambda _: os.urandom(8)):
        try:
            said = wire.ask("dunder", self, name, other)
        except Exception:
            if due is None:
                raise
            continue
        if due is None:
            found = said
        elif said is not NotImplemented and bool(said) is not due:
            wire.beyond = f"{type(self).__name__} of the solution compares with all values alike"
            return NotImplemented
    return found


def others(value: Any) -> list[Any]:
    """Return values of the same kind that are not equal to this one."""
    if value is None or isinstance(value, bool):
        return [v for v in (None, True, False) if v is not value]
    if isinstance(value, str):
        return [value + os.urandom(n).hex() for n in range(1, 7)]
    if isinstance(value, bytes):
        return [value + os.urandom(n) for n in range(1, 7)]
    if isinstance(value, list | tuple):
        return [type(value)([*value, p]) for p in PRIMES] if type(value) in (list, tuple) else []
    if isinstance(value, set | frozenset):
        return [value | {p} for p in PRIMES]
    if isinstance(value, dict):
        return [value | {p: p} for p in PRIMES]
    try:
        return [value + p for p in PRIMES]
    except TypeError:
        return []


def beside(value: Any) -> tuple[list[Any], list[Any]]:
    """Return (values far below this one, values far above it)."""
    if isinstance(value, str):
        return [""], [chr(0x10FFFF) * 9]
    try:
        return [value - FAR, value - 2 * FAR], [value + FAR, value + 2 * FAR]
    except TypeError:
        return [], []


def contains(self: Remote, value: Any) -> bool:
    """Return whether an item equals the value, by looking through all items."""
    return any(value is item or value == item for item in self)
