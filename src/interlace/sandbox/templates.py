"""Render Jinja templates of other people (recipes, chat templates of checkpoints) where they can do no harm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.base.errors import ConfigError
from interlace.sandbox.worker import OutOfBounds, Refused, Worker

SECONDS = 2.0
MODULE = "interlace.sandbox.template_child"
OUTSIDE = "reaches outside its sandbox"


_idle: list[Worker] = []  # at most one


class UnsafeTemplate(ConfigError):
    """A template reaches outside its sandbox, or takes more time or memory than it was given."""


class Templates:
    """Renders in a process of its own, in Jinja's immutable sandbox, with limits on time, memory and length."""

    def __init__(self, seconds: float = SECONDS):
        """seconds: the time limit of one rendering."""
        self._worker = _idle.pop() if _idle else Worker(MODULE, memory_bytes=256 << 20)
        self._worker.seconds = seconds

    def start(self) -> None:
        """Start the process now, so that it is ready when it is needed."""
        self._worker.start()

    def render(self, template: str, values: Mapping[str, Any], where: str, chat: bool = False) -> str:
        """Return the text of a template.

        Args:
            values: plain data, by name.
            where: names the template in errors.
            chat: as chat templates are rendered by `transformers`: names that are not given are empty, and
                `raise_exception`, `strftime_now`, `tojson`, `generation`, `break` and `continue` are known.

        Raises:
            UnsafeTemplate: it reaches outside the sandbox, does not end in time, or takes too much memory.
            ConfigError: it is not a template, uses a name that is not given, or fails on these values.
        """
        request = {"do": "render", "template": template, "values": dict(values), "chat": chat}
        return str(self._ask(request, where))

    def spans(self, template: str, values: Mapping[str, Any], where: str) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a chat template, and [start, stop) of each part that it marks by `{% generation %}`.

        Raises:
            UnsafeTemplate, ConfigError: as `render`.
        """
        request = {"do": "spans", "template": template, "values": dict(values), "chat": True}
        reply = self._ask(request, where)
        return reply["text"], [(a, b) for a, b in reply["spans"]]

    def names(self, template: str, where: str) -> set[str]:
        """Return the names that a template uses and does not set itself.

        Raises:
            ConfigError: it is not a template.
        """
        return set(self._ask({"do": "names", "template": template}, where))

    def close(self) -> None:
        """Leave the process to those that come next: its start takes longer than most templates."""
        if not _idle:
            _idle.append(self._worker)
        elif self._worker not in _idle:
            self._worker.close()

    def _ask(self, request: dict[str, Any], where: str) -> Any:
        try:
            return self._worker.ask(request)
        except OutOfBounds as error:
            raise UnsafeTemplate(f"{where}: the template {error}; does it loop over too much?") from None
        except Refused as error:
            kind = UnsafeTemplate if OUTSIDE in str(error) else ConfigError
            raise kind(f"{where}: {error}") from None
