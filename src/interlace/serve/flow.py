"""From the engine to an answer: whole answers together, or the pieces of several in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from interlace.base.errors import InterlaceError
from interlace.generation.engine import Engine
from interlace.generation.request import Answer, Piece, Request
from interlace.serve.errors import of_request


async def answer_all(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    """Return the answers to all requests; if one fails, or the client leaves, the others end.

    Raises:
        ApiError: one cannot be served.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.generate(request)) for request in requests]
    except* InterlaceError as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        assert isinstance(first, InterlaceError)
        raise of_request(first) from None
    return [task.result() for task in tasks]


async def merged(engine: Engine, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield (which request, its next piece) until all have ended; whoever leaves the iterator ends the others.

    Raises:
        ApiError: one cannot be served.
    """
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()
    cancels = []
    try:
        for index, request in enumerate(requests):

            def take(piece: Piece, index: int = index) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

            cancels.append(engine.submit(request, take))
        going = len(requests)
        while going:
            index, piece = await pieces.get()
            if piece.error is not None:
                raise of_request(piece.error)
            going -= bool(piece.finish)
            yield index, piece
    finally:
        for cancel in cancels:
            cancel()
