"""What a process knows of the other's objects; runs inside the cage.

Whether a Remote equals a plain value is decided where the question is put: the other side's word is not taken for it.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
INDEX = ("getitem", "setitem", "delitem", "contains", "exit")  # a plain argument of these is no expected value
OTHERS = (
    *("len", "bool", "int", "float", "abs", "neg", "enter", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow"),
    *("radd", "rsub", "rmul", "and", "or", "xor", "invert", "round", "format", "reversed", "matmul", "iadd", "isub"),
)
OPERATORS = COMPARE + INDEX + OTHERS
PLAIN = ("abs", "bool", "len", "int", "float", "round", "contains")  # give something plain
ANSWERS = ("startswith", "endswith", "issubset", "issuperset", "isdisjoint", "equals")  # methods told what is expected
ASKED = ("__name__", "__qualname__", "__doc__")  # of what has an underscore


class Remote:
    """Something of the other side."""

    _number: int
    _wire: Any  # the exchange.Wire that asks
    _tested = False  # whether its class is what the tests are about
    _told = False  # whether it came of an operation with a plain value, which may be what is expected

    def __getattr__(self, name: str) -> Any:
        if (name.startswith("__") and name not in ASKED) or (name in ANSWERS and not self._tested):
            raise AttributeError(name)
        return self._wire.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._wire.ask("setattr", self, name, value)

    def __iter__(self) -> Any:
        return self._wire.ask("iter", self)

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
    """One that binds, as functions in a class do."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


Remote.__doc__ = RemoteFunction.__doc__ = property(lambda self: self._wire.ask("getattr", self, "__doc__"))  # type: ignore[assignment]


class RemoteClass(type):
    """The class of a class of the other side."""

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
        return cls._wire.ask("dunder", cls, "getitem", key)


def operator(name: str) -> Callable[..., Any]:
    """A method of a Remote's class. A plain value is not shown to the other side where it may be what is expected."""

    def method(self: Remote, *args: Any) -> Any:
        strange = bool(args) and not isinstance(args[0], Remote) and name not in INDEX
        if strange and name in COMPARE:
            return NotImplemented
        if self._told and name in PLAIN:  # abs(found - 3): it would say what the solution wants it to
            raise TypeError(f"__{name}__ of a solution's object that was told a value")
        found = self._wire.ask("dunder", self, name, *args)
        if isinstance(found, Remote) and (strange or self._told):
            object.__setattr__(found, "_told", True)
        return NotImplemented if strange and not isinstance(found, Remote) else found

    return method


def contains(self: Remote, value: Any) -> bool:
    """Membership, by looking through."""
    return any(value is item or value == item for item in self)
