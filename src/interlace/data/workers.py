"""Encode the pieces of a source in several processes."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

from interlace.base.errors import Failure, InterlaceError
from interlace.data.encode import Encoding, Piece, encode_piece
from interlace.data.sources import Sources
from interlace.data.tokenizer import TOKENIZER, Tokenizer

WAIT_SECONDS = 0.5
THREADS = "RAYON_NUM_THREADS"  # of the tokenizer's library


def run_pieces(
    sources: Sources, pieces: Sequence[Piece], encoding: Encoding, workers: int, tell: Callable[[int], None]
) -> None:
    """Encode all pieces; each process takes the next one that nobody has.

    Raises:
        InterlaceError: that of a worker; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    given, said = context.Queue(), context.Queue()
    for piece in pieces:
        given.put(piece)
    for _ in range(workers):
        given.put(None)
    with _threads(max(1, (os.cpu_count() or 1) // workers)):
        running = [context.Process(target=_work, args=(sources, encoding, given, said)) for _ in range(workers)]
        for process in running:
            process.start()
    try:
        left = len(pieces)
        while left:
            try:
                what, value = said.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                if dead := [p for p in running if p.exitcode not in (None, 0)]:
                    raise Failure(
                        f"workers: a process ended with exit code {dead[0].exitcode}; was it killed for memory? the "
                        "same command goes on, with fewer --workers if need be"
                    ) from None
                continue
            if what == "error":
                raise value
            tell(value)
            left -= what == "done"
    finally:
        for process in running:
            process.terminate() if left else None
            process.join()


@contextmanager
def _threads(count: int) -> Any:
    """Processes that are started inside give their tokenizers so many threads."""
    before = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, str(count))
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(sources: Sources, encoding: Encoding, given: Any, said: Any) -> None:
    """Encode pieces until there are none; end with the process that started this one, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this is told, and ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    model = Tokenizer.from_file(encoding.tokenizer / TOKENIZER)
    while (piece := given.get()) is not None:
        try:
            encode_piece(sources, piece, encoding, model, lambda more: said.put(("read", more)))
        except InterlaceError as error:
            said.put(("error", error))
            return
        said.put(("done", 0))
