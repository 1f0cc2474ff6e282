"""Choose an operator's implementation from a table: the fastest first, each loaded when it is first asked for."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from interlace.base.errors import BackendUnavailable, ConfigError, nearest

log = logging.getLogger("interlace")

ANY = "any"
_rows: list[Backend] = []


def constant_when_traced(run: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that torch.compile calls, and traces none of, as torch.compiler.assume_constant_result does.

    That one imports the compiler: a second or two of every start.
    """
    run._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return run


@constant_when_traced
def _load(number: int) -> bool:
    """Load a row's implementation; torch.compile calls this, and traces none of it."""
    return _rows[number].loaded[0] is not None


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        name: what the `backend` argument says.
        load: returns the implementation; raises BackendUnavailable where this machine has none.
        devices: the types of device that it serves; empty for any.
        refuses: given the call's arguments, why it cannot serve them, or None if it can.
        rows: "auto" passes it over, without a word, for more rows of the first argument than this; None for no limit.
        when: "auto" passes it over, without a word, for arguments of which this is false.
        slow_on: types of device on which "auto" announces that it had to take this one; (ANY,) for all.
    """

    name: str
    load: Callable[[], Callable[..., Any]]
    devices: tuple[str, ...] = ()
    refuses: Callable[..., str | None] = lambda *_: None
    rows: int | None = None
    when: Callable[..., bool] = lambda *_: True
    slow_on: tuple[str, ...] = ()
    number: int = field(init=False, compare=False)  # its place among all rows

    def __post_init__(self) -> None:
        """Count the row."""
        object.__setattr__(self, "number", len(_rows))
        _rows.append(self)

    @cached_property
    def loaded(self) -> tuple[Callable[..., Any] | None, str]:
        """Return (the implementation, "") or (None, why this machine has none)."""
        try:
            return self.load(), ""
        except BackendUnavailable as error:
            return None, str(error)

    def obstacle(self, *arguments: Any) -> str | None:
        """Return why it cannot serve a call with these arguments, or None."""
        device = arguments[0].device.type
        if self.devices and device not in self.devices:
            return f"it serves tensors on {' and '.join(self.devices)}, not on {device}"
        if torch.compiler.is_compiling():
            _load(self.number)
        run, missing = self.loaded
        return missing if run is None else self.refuses(*arguments)

    def wanted(self, *arguments: Any) -> bool:
        """Return whether "auto" considers it for a call with these arguments."""
        return (self.rows is None or arguments[0].shape[0] <= self.rows) and self.when(*arguments)


@functools.cache
def announce(message: str) -> None:
    """Say once per process why a slower backend serves a call."""
    log.warning(message)


def choose(operator: str, backends: Sequence[Backend], backend: str, *arguments: Any) -> Callable[..., Any]:
    """Return the implementation that `backend` names, or for "auto" the first in order that can serve these arguments.

    Args:
        arguments: of the call; the first one tells the device.

    Raises:
        ConfigError: no backend has this name.
        BackendUnavailable: the named backend cannot serve the call.
    """
    if backend == "auto":
        return _first(operator, backends, *arguments)
    named = {b.name: b for b in backends}
    if backend not in named:
        raise ConfigError(f"{operator}: backend '{backend}' is unknown; {nearest(backend, ['auto', *named])}")
    if reason := named[backend].obstacle(*arguments):
        raise BackendUnavailable(f"{operator}: backend '{backend}' cannot serve this call: {reason}; use 'auto'")
    run = named[backend].loaded[0]
    assert run is not None
    return run


def _first(operator: str, backends: Sequence[Backend], *arguments: Any) -> Callable[..., Any]:
    passed: list[tuple[str, str]] = []
    for candidate in backends:
        if not candidate.wanted(*arguments):
            continue
        reason = candidate.obstacle(*arguments)
        run = candidate.loaded[0]
        if reason is not None or run is None:
            passed.append((candidate.name, reason or ""))
            continue
        if passed and candidate.slow_on and not torch.compiler.is_compiling():
            device = arguments[0].device.type
            if device != "meta" and (device in candidate.slow_on or ANY in candidate.slow_on):
                for name, why in passed:
                    announce(f"backend '{name}' cannot serve {operator} ({why}); taking a slower one")
        return run
    raise BackendUnavailable(f"{operator}: no backend can serve this call")
