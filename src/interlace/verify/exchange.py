"""Exchange values and calls between a solution and its tests, which run in two processes inside the cage.

A plain value crosses as what it is: a number that calls itself equal to everything arrives as the plain number. Any
other value stays with its owner. The other side knows it by a number, as a `Remote` that asks the owner.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import os
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from interlace.verify.crossing import Crossing
from interlace.verify.remote import (
    NAMED,
    OPERATORS,
    WAITING,
)

CHANGE = (list, dict, set, bytearray, deque)
STREAMS = (io.StringIO, io.BytesIO)  # of the tests, whose methods a solution may call
MOCKS = (  # what a mock of the tests says, besides the methods of all mocks
    *("return_value", "side_effect", "called", "call_count", "call_args", "call_args_list", "mock_calls"),
    "method_calls",
)
LONGEST = 1 << 28  # bytes of a message


class SolutionGone(BaseException):
    """The process of the other side has ended."""


class Wire(Crossing):
    """One end of two pipes.

    Attributes:
        asked: how often this side asked the other to do something.
        answering: how many calls of the other side are being answered now.
    """

    def __init__(self, own: str, read: int, write: int, do: dict[str, Callable[..., Any]], trusting: bool):
        """trusting: as for `Crossing`."""
        super().__init__(own, trusting)
        self.read, self.write, self.do = read, write, do
        self.asked = self.answering = 0
        self.turn = threading.RLock()

    def send(self, message: Any) -> None:
        """Send a whole message."""
        raw = json.dumps(message).encode()
        raw = len(raw).to_bytes(8, "big") + raw
        while raw:
            try:
                raw = raw[os.write(self.write, raw) :]
            except BrokenPipeError:
                raise SolutionGone("the solution ended its process") from None

    def receive(self) -> Any:
        """Return the next message."""

        def take(count: int) -> bytes:
            if count > LONGEST:
                raise SolutionGone(f"a message of {count} bytes")
            parts = []
            while count:
                part = os.read(self.read, min(count, 1 << 20))
                if not part:
                    raise SolutionGone("the solution ended its process")
                parts.append(part)
                count -= len(part)
            return b"".join(parts)

        return json.loads(take(int.from_bytes(take(8), "big")))

    def ask(self, what: str, *args: Any, **more: Any) -> Any:
        """Ask the other side to do something; changes that it makes to lists, sets and mappings are made here too."""
        with self.turn:
            self.asked += 1
            try:
                packed = [a if what == "describe" else self.pack(a) for a in args]
                self.send(["ask", what, packed, {k: self.pack(v) for k, v in more.items()}])
            except RecursionError:
                self.beyond = "a value is nested too deep to cross"
                raise
            while True:
                kind, *rest = self.receive()
                if kind == "ask":
                    self.answer(*rest)
                elif kind == "print":
                    self.do["print"](str(rest[0]))
                else:
                    break
            if kind == "raised":
                raise self._error(what, rest)
            found, changed = rest
            given = dict(enumerate(args)) | more
            for place, new in changed:
                assign(given[place], self.open(new))
            if isinstance(found, list) and found and found[0] == "given":
                return given[found[1]]
            return self.open(found)

    def answer(self, what: str, args: list[Any], more: dict[str, Any]) -> None:
        """Do what the other side asks for, and send the result."""
        self.answering += 1
        try:
            if not self.trusting:
                self._allow(what, args)
            opened = [self.open(a) for a in args]
            named = {k: self.open(v) for k, v in more.items()}
            given = {k: v for k, v in (dict(enumerate(opened)) | named).items() if isinstance(v, CHANGE)}
            before = {k: self.pack(v) for k, v in given.items()}
            found = self.do[what](*opened, **named)
            same = [k for k, v in given.items() if v is found]
            after = {k: self.pack(v) for k, v in given.items()}
            changed = [[k, v] for k, v in after.items() if v != before[k]]
            made = what == "call" and bool(opened) and isinstance(opened[0], type)
            reply = ["did", ["given", same[0]] if same else self.pack(found, whole=made), changed]
        except SolutionGone:
            raise
        except BaseException as error:
            reply = ["raised", *self._raised(error)]
        finally:
            self.answering -= 1
        self.send(reply)

    def _allow(self, what: str, args: list[Any]) -> None:
        """Refuse what a solution may not do: from what it was given, it may not reach the rest of this process."""
        if what in ("input", "readline", "read") and not args[1:]:
            return
        if what not in DO or not args or not isinstance(args[0], list) or args[0][0] != "own":
            raise PermissionError(f"{what} is not for a solution")
        target = self.held[args[0][1]]
        ours = self.own in (type(target).__module__, getattr(target, "__module__", ""))
        if what == "describe" and not (ours and isinstance(target, type)):
            raise PermissionError("only a class of the tests is described")
        mock = importlib.import_module("unittest.mock").NonCallableMock if "unittest.mock" in sys.modules else ()
        if isinstance(target, mock) and what == "getattr":
            ours = not hasattr(mock, str(args[1])) and args[1] not in MOCKS
        ours = ours or (type(target) in STREAMS and what == "getattr")
        if (
            what in ("getattr", "setattr", "delattr")
            and (
                not isinstance(args[1], str)
                or args[1].startswith("_")
                or not ours
                or isinstance(target, types.FunctionType | types.MethodType | types.GeneratorType | types.CoroutineType)
            )
            and not (what == "getattr" and args[1] in NAMED)
        ):
            if not ours:
                self.beyond = f"{type(target).__name__} of the tests cannot be used by a solution"
            raise AttributeError(f"{args[1]!r} is not for a solution")
        if what in ("dunder", "await") and args[1] not in OPERATORS + WAITING:
            raise PermissionError(f"{args[1]!r} is not for a solution")


def assign(old: Any, new: Any) -> None:
    """Replace the content of a list, set, mapping or the like by that of another."""
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, deque):
        old.clear()
        old.extend(new)
    elif isinstance(old, set | dict):
        old.clear()
        old.update(new)


LOOPS: list[Any] = []  # kept from call to call, with the generators and locks that belong to them


def run_to_end(function: Any, *args: Any, **more: Any) -> Any:
    """Return the result of a coroutine; this also works while another one here waits for the other side."""
    asyncio = importlib.import_module("asyncio")
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    loop = next((made for made in LOOPS if not made.is_running()), None)
    if loop is None:
        loop = asyncio.new_event_loop()
        LOOPS.append(loop)
    try:
        return loop.run_until_complete(function(*args, **more))
    finally:
        asyncio._set_running_loop(outer)


async def wait_for(value: Any, name: str, *args: Any) -> Any:
    """Return the result of a method of `async with` or `async for`."""
    return await getattr(type(value), f"__{name}__")(value, *args)


DO: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "item": lambda value, key: value[key],
    "iter": iter,
    "next": next,
    "call": lambda function, *args, **more: function(*args, **more),
    "run": run_to_end,
    "await": lambda value, name, *args: run_to_end(wait_for, value, name, *args),
    "anext": lambda value: run_to_end(wait_for, value, "anext"),
    "str": str,
    "repr": repr,
    "hash": hash,
    "dunder": lambda value, name, *args: getattr(type(value), f"__{name}__")(value, *args),
    "describe": lambda _: None,
}
