"""The engine: many requests at once, from any thread or event loop, each answered as if it were alone."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from interlace.base.errors import ConfigError, Failure, InterlaceError
from interlace.generation.budget import Budget, parse_bytes
from interlace.generation.pack import pack_for_decoding
from interlace.generation.penalties import Penalties
from interlace.generation.prefill import PREFILL
from interlace.generation.prompts import checked_prompt, encoded, fresh_seed
from interlace.generation.request import Answer, Piece, Request
from interlace.generation.scheduler import Counts, Scheduler, Ticket
from interlace.generation.stops import checked_stops
from interlace.generation.structure import Structure, grammars_of
from interlace.generation.text import recommended
from interlace.model.model import HybridLM

KEPT_BYTES = 1 << 30  # of snapshots, where no memory is named
Prompt = str | Sequence[int]
Taker = Callable[[Piece], None]


class Engine:
    """Answers requests in one thread of its own; close it, or use it in a `with` block.

    Attributes:
        model: packed for decoding; its weights must not change while the engine lives.
        budget: how the memory is divided.
    """

    def __init__(
        self,
        model: HybridLM,
        memory: int | str | None = None,
        *,
        rows: int = 64,
        reuse: bool = True,
        ahead: bool = True,
    ):
        """Start the thread.

        Args:
            model: it is packed for decoding.
            memory: bytes, or "8GB" or "512MiB": weights, working memory, states and kept snapshots together. Nothing
                that does not fit is begun, so that nothing is ever ended for want of memory. None: all rows are begun,
                and snapshots take at most KEPT_BYTES.
            rows: the most answers that are made at a time.
            reuse: whether states are kept, so that a request which begins as an earlier one reads only what differs.

            ahead: whether tokens that a text foresees, as it holds what goes on the same way, are tried at once, where
                that is measured to pay; no answer changes.

        Raises:
            ConfigError: the memory holds no sequence, or an argument is out of range.
        """
        if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= 4096:
            raise ConfigError(f"rows: must be an integer from 1 to 4096, got {rows!r}")
        self.model = pack_for_decoding(model.eval())
        if memory is None:
            self.budget = Budget.unlimited(rows, KEPT_BYTES)
        else:
            self.budget = Budget.of(self.model, parse_bytes("memory", memory), rows, PREFILL)
        self._scheduler = Scheduler(self.model, self.budget, reuse, ahead)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._takers: dict[Ticket, Taker] = {}
        self._closed, self._lock = False, threading.Lock()
        self._thread = threading.Thread(target=self._work, name="interlace-engine", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it answers nothing any more."""
        return self._closed

    def counts(self) -> Counts:
        """Return what the engine does now, and has done; any thread may ask."""
        return self._scheduler.counts()

    def request(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
        structure: Structure | None = None,
        owner: str = "",
    ) -> Request:
        """Return a request.

        Args:
            prompt: text, or token ids.
            max_tokens: the most to make.
            temperature, top_k, top_p, min_p: as of `interlace.generate`.
            repetition_penalty, presence_penalty, frequency_penalty, logit_bias: see `Penalties`; a bias by token id.
            seed: of the draws; None for a fresh one.
            stop: strings that end the answer.
            logprobs: how many alternatives come with each token's log-probability; None for neither.
            structure: the form of the answer, such as `Structure.json_schema(...)`; None for any.
            owner: whose states may be reused.

        Raises:
            ConfigError: an argument is out of range; the message names it.
        """
        sampling, _ = recommended(self.model, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        bias = tuple(sorted((logit_bias or {}).items()))
        penalties = Penalties(repetition_penalty, presence_penalty, frequency_penalty, bias)
        if logprobs is not None and (not isinstance(logprobs, int) or isinstance(logprobs, bool) or logprobs < 0):
            raise ConfigError(f"logprobs: must be a whole number or None, got {logprobs!r}")
        if structure is not None:
            grammars_of(self.model).matcher(structure)  # here, so that what is wrong with it is said to the caller
        return Request(
            tuple(self._ids(prompt)),
            max_tokens,
            sampling,
            penalties,
            fresh_seed(seed),
            stop=checked_stops(stop),
            logprobs=logprobs,
            structure=structure,
            owner=owner,
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return checked_prompt(prompt)
        if self.model.tokenizer is None:
            raise ConfigError("prompt: the model has no tokenizer; give token ids")
        return encoded(self.model, prompt)

    def submit(self, request: Request, take: Taker) -> Callable[[], None]:
        """Hand a request over; return what cancels it.

        take: called in the engine's thread for each piece, the last one with a `finish`; it must return at once. A
            request that cannot be served ends with an error as its only piece.

        Raises:
            ConfigError: the engine is closed.
        """
        held: list[Ticket] = []

        def begin() -> None:
            try:
                held.append(self._scheduler.submit(request))
            except InterlaceError as error:
                _hand_over(take, Piece(None, finish="error", error=error))
            else:
                self._takers[held[0]] = take

        def end() -> None:
            for ticket in held:
                ticket.cancelled = True

        self._put(begin)
        return lambda: None if self._closed else self._put(end)

    def _put(self, todo: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise ConfigError("engine: is closed; make another one")
            self._inbox.put(todo)

    async def stream(self, prompt: Prompt | Request, **settings: Any) -> AsyncIterator[Piece]:
        """Yield pieces as they come; an iterator that is closed early, or a task that is cancelled, ends the answer.

        settings: as `request` takes them.

        Raises:
            InterlaceError: the request cannot be served.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()

        def take(piece: Piece) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        cancel = self.submit(self._asked(prompt, settings), take)
        try:
            while True:
                piece = await pieces.get()
                if piece.error is not None:
                    raise piece.error
                yield piece
                if piece.finish:
                    return
        finally:
            cancel()

    async def generate(self, prompt: Prompt | Request, **settings: Any) -> Answer:
        """Return a whole answer; a task that is cancelled ends it.

        settings: as `request` takes them.

        Raises:
            InterlaceError: the request cannot be served.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()

        def finish(answer: Answer | InterlaceError) -> None:
            if done.done():
                return
            if isinstance(answer, InterlaceError):
                done.set_exception(answer)
            else:
                done.set_result(answer)

        def told(answer: Answer | InterlaceError) -> None:
            loop.call_soon_threadsafe(finish, answer)

        request = self._asked(prompt, settings)
        cancel = self.submit(request, _gather(request, told))
        try:
            return await done
        finally:
            cancel()

    def batch(self, prompts: Sequence[Prompt | Request], **settings: Any) -> list[Answer]:
        """Return the answers to many prompts, in order; they are made together.

        settings: as `request` takes them, for all prompts that are no requests.

        Raises:
            InterlaceError: one of the requests cannot be served.
        """
        requests = [self._asked(prompt, settings) for prompt in prompts]
        answers: queue.SimpleQueue[tuple[int, Answer | InterlaceError]] = queue.SimpleQueue()
        cancels = []
        for place, request in enumerate(requests):
            cancels.append(self.submit(request, _gather(request, lambda a, place=place: answers.put((place, a)))))  # type: ignore[misc]
        found: dict[int, Answer] = {}
        try:
            while len(found) < len(requests):
                place, answer = answers.get()
                if isinstance(answer, InterlaceError):
                    raise answer
                found[place] = answer
        finally:
            if len(found) < len(requests):
                for cancel in cancels:
                    cancel()
        return [found[place] for place in range(len(requests))]

    def _asked(self, prompt: Prompt | Request, settings: dict[str, Any]) -> Request:
        return prompt if isinstance(prompt, Request) else self.request(prompt, **settings)

    def _work(self) -> None:
        """Take requests in, and step, until the engine is closed."""
        error: InterlaceError = Failure("engine: was closed before the answer was done")
        try:
            while self._read_mail():
                for ticket, piece in [] if self._scheduler.idle else self._scheduler.step():
                    taken = _hand_over(self._takers[ticket], piece) if ticket in self._takers else False
                    if piece.finish or not taken:
                        self._takers.pop(ticket, None)
                        ticket.cancelled = True
        except BaseException as found:  # of a library's too: nobody is left waiting
            error = found if isinstance(found, InterlaceError) else Failure(f"engine: {type(found).__name__}: {found}")
        with self._lock:
            self._closed = True
        while not self._inbox.empty():
            if (todo := self._inbox.get()) is not None:
                todo()
        for take in self._takers.values():
            _hand_over(take, Piece(None, finish="error", error=error))
        self._takers.clear()

    def _read_mail(self) -> bool:
        """Do what was put into the inbox; wait for it if there is nothing else to do; return whether to go on."""
        wait = self._scheduler.idle
        while wait or not self._inbox.empty():
            todo, wait = self._inbox.get(), False
            if todo is None:
                return False
            todo()
        return True

    def close(self) -> None:
        """End the thread; answers that are not done end with an error."""
        self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()


def _hand_over(take: Taker, piece: Piece) -> bool:
    """Give a piece to whoever asked; return whether they are still there: a closed event loop takes nothing."""
    try:
        take(piece)
    except RuntimeError:
        return False
    return True


def _gather(request: Request, finish: Callable[[Answer | InterlaceError], None]) -> Taker:
    """Return what gathers the pieces of an answer, and hands over the whole at the end."""
    answer = Answer(len(request.prompt))

    def take(piece: Piece) -> None:
        if piece.error is not None:
            finish(piece.error)
            return
        answer.add(piece)
        if piece.finish:
            finish(answer)

    return take
