"""HTTP/1.1 for clients that may mean harm: headers that do not come in time end their connection."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0
HEADER_BYTES = 64 << 10


class Protocol(H11Protocol):
    """uvicorn's protocol, with a limit on the time that the headers of a request may take."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first headers."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes; while headers are not complete, the time goes on."""
        super().data_received(data)
        unread = self.cycle is not None and self.cycle.response_complete  # the rest of a body that nobody waits for
        if self.conn.their_state is not h11.IDLE and not unread:
            self._stop()
        elif self._late is None and (unread or self.conn.trailing_data[0]):
            self._wait()

    def on_response_complete(self) -> None:
        """Wait for the rest of a body that was answered before it was read, but not for ever."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop()
        self._late = self.loop.call_later(HEADER_SECONDS, self._end)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
