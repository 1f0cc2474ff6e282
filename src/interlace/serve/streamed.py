"""Server-sent events on their way to a client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from interlace.serve.answers import DONE, Events, event
from interlace.serve.errors import ApiError

SILENCE = 15.0  # seconds after which a comment says that the stream goes on: proxies close what is silent for a minute
COMMENT = b": the answer is being made\n\n"


class Streamed(StreamingResponse):
    """Events that hold places until they end, however they end."""

    def __init__(self, events: Events, place: contextlib.AbstractContextManager[None]):
        """place: is held while the events go on."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_told_errors(events), media_type="text/event-stream", headers=headers)
        self._events, self._place = events, place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        async with contextlib.aclosing(self._events):  # or they would go on until somebody collects them
            with self._place:
                async with _never_silent(send) as sent:
                    await super().__call__(scope, receive, sent)


@contextlib.asynccontextmanager
async def _never_silent(send: Any) -> AsyncIterator[Any]:
    """Give a `send` beside which comments go out, where nothing else does, until the last event."""
    last, goes_on = 0.0, False

    async def sent(message: Any) -> None:
        nonlocal last, goes_on
        last, goes_on = time.monotonic(), message.get("more_body", message["type"] == "http.response.start")
        await send(message)

    async def watch() -> None:
        nonlocal last
        while True:
            await asyncio.sleep(SILENCE / 4)
            if goes_on and time.monotonic() - last >= SILENCE:
                last = time.monotonic()
                with contextlib.suppress(OSError):  # the client has left
                    await send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    watching = asyncio.ensure_future(watch())
    try:
        yield sent
    finally:
        watching.cancel()


async def _told_errors(events: Events) -> AsyncIterator[bytes]:
    """Yield events; an error ends them in words."""
    try:
        async for one in events:
            yield one
    except ApiError as error:
        yield event(error.body())
        yield DONE
