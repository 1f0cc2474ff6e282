"""How an operator picks one of its implementations."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interlace.base.errors import BackendUnavailable, ConfigError, nearest

log = logging.getLogger("interlace")


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator.

    Attributes:
        name: what the `backend` argument says.
        run: the implementation; None where this build has none.
        refuses: given the call's tensors, the reason why it cannot serve them, or None if it can.
        devices: the types of device it serves; empty for any.
        missing: why there is no `run`, where one could be expected.
    """

    name: str
    run: Callable[..., Any] | None
    refuses: Callable[..., str | None] = lambda *_: None
    devices: tuple[str, ...] = ()
    missing: str = ""

    def obstacle(self, *tensors: Any) -> str | None:
        """Why it cannot serve a call on these tensors, or None."""
        if self.run is None:
            return self.missing or "this build does not contain it"
        if self.devices and tensors[0].device.type not in self.devices:
            return f"it serves tensors on {' and '.join(self.devices)}, not on {tensors[0].device.type}"
        return self.refuses(*tensors)


@functools.cache
def announce(message: str) -> None:
    """Say once per process why a slower backend serves a call."""
    log.warning(message)


def choose(operator: str, backends: Sequence[Backend], backend: str, *tensors: Any) -> Callable[..., Any]:
    """The implementation that `backend` names, or for "auto" the first in order that can serve these tensors.

    Raises:
        ConfigError: no backend has this name.
        BackendUnavailable: the named backend cannot serve the call.
    """
    if backend == "auto":
        for candidate in backends:
            if candidate.devices and tensors[0].device.type not in candidate.devices:
                continue
            reason = candidate.obstacle(*tensors)
            if candidate.run is not None and reason is None:
                return candidate.run
            expected = candidate.run is not None or candidate.missing
            if expected and not torch.compiler.is_compiling():
                announce(f"backend '{candidate.name}' cannot serve {operator} ({reason}); taking a slower one")
        raise BackendUnavailable(f"{operator}: no backend can serve this call")
    named = {b.name: b for b in backends}
    if backend not in named:
        raise ConfigError(f"{operator}: backend '{backend}' is unknown; {nearest(backend, ['auto', *named])}")
    run, reason = named[backend].run, named[backend].obstacle(*tensors)
    if run is None or reason is not None:
        raise BackendUnavailable(f"{operator}: backend '{backend}' cannot serve this call: {reason}; use 'auto'")
    return run
