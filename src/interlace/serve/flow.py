"""From the engine to an answer: whole answers together, or the pieces of several in the order in which they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from interlace.base.errors import InterlaceError
from interlace.generation.request import Answer, Piece, Request
from interlace.serve.errors import ApiError, of_request
from interlace.serve.served import Served


async def answer_all(served: Served, requests: Sequence[Request]) -> list[Answer]:
    """Return the answers to all requests; if one fails, or the client leaves, the others end.

    Raises:
        ApiError: one cannot be served.
    """
    found = [Answer(len(request.prompt)) for request in requests]
    async for index, piece in merged(served, requests):
        found[index].add(piece)
    return found


async def merged(served: Served, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield (which request, its next piece) until all have ended; whoever leaves the iterator ends the others.

    Raises:
        ApiError: one cannot be served.
    """
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()
    began, going = time.monotonic(), set(range(len(requests)))
    waiting = set(going)
    cancels = []
    try:
        for index, request in enumerate(requests):

            def take(piece: Piece, index: int = index) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

            try:
                cancels.append(served.engine.submit(request, take))
            except InterlaceError:
                raise ApiError(503, "the model has stopped; start the server again", kind="server_error") from None
        while going:
            index, piece = await pieces.get()
            if piece.error is not None:
                raise of_request(piece.error)
            if index in waiting:
                waiting.discard(index)
                served.first.add(time.monotonic() - began)
            if piece.finish:
                going.discard(index)
                served.whole.add(time.monotonic() - began)
            yield index, piece
    finally:
        for cancel in cancels:
            cancel()
