"""Answer requests in the caller's own thread, one by one as tokens come, or many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from interlace.generation.budget import Budget
from interlace.generation.prompts import memory_for
from interlace.generation.request import Answer, Piece, Request
from interlace.generation.scheduler import Scheduler
from interlace.model.model import HybridLM


def pieces_of(model: HybridLM, request: Request) -> Iterator[Piece]:
    """Yield the pieces of one answer as they come.

    Raises:
        PromptTooLong: prompt and max_tokens pass the model's limit. ConfigError, ShapeError: something in the request
            is wrong. Failure: while they are made: memory does not hold the state, or logits are no numbers.
    """
    scheduler = Scheduler(model, Budget.unlimited(1), reuse=False)
    scheduler.submit(request)
    return pieces(scheduler, len(request.prompt) + request.max_tokens)


def pieces(scheduler: Scheduler, tokens: int) -> Iterator[Piece]:
    """Yield what a scheduler brings until it is idle, or raise what went wrong; tokens: that its states may hold."""
    while not scheduler.idle:
        with memory_for(tokens):
            came = scheduler.step()
        for _, piece in came:
            if piece.error is not None:
                raise piece.error
            yield piece


def answers(model: HybridLM, requests: Sequence[Request], rows: int = 256) -> list[Answer]:
    """Return the answers to many requests, in order; each is what it would be alone.

    rows: the most answers that are made at a time.

    Raises:
        InterlaceError: as `pieces_of`, for any of them.
    """
    scheduler = Scheduler(model, Budget.unlimited(max(1, min(rows, len(requests)))), reuse=False)
    found = {scheduler.submit(request): Answer(len(request.prompt)) for request in requests}
    longest = max((len(request.prompt) + request.max_tokens for request in requests), default=0)
    with memory_for(min(rows, len(requests)) * longest):
        while not scheduler.idle:
            for ticket, piece in scheduler.step():
                if piece.error is not None:
                    raise piece.error
                found[ticket].add(piece)
    return list(found.values())
