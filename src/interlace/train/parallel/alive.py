"""Signs of life: a worker that ends, or says nothing for a while, ends the others with its name and reason."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

BEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0


class Alive:
    """Tells the other workers that this one lives, and watches the next one, in a thread.

    Each worker writes a sign every two seconds, and watches the one after it; whoever finds a silent one says so to
    all. A worker that ends with an error leaves its reason first.
    """

    def __init__(self, store: Any, rank: int, workers: int, silent_seconds: float = SILENT_SECONDS):
        """store: a client of torch's TCPStore of this thread's own."""
        self._store, self._rank, self._next = store, rank, (rank + 1) % workers
        self._silent = silent_seconds
        self._over = threading.Event()
        self._name = f"worker {rank} ({socket.gethostname()}, process {os.getpid()})"
        store.set(f"name/{rank}", self._name)
        self._thread = threading.Thread(target=self._watch, name="alive", daemon=True)

    def start(self) -> None:
        """Begin; every worker has set its name by now."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until it is known who has stopped, which ends this process; give up after a while."""
        self._thread.join(timeout=self._silent + 5 * BEAT_SECONDS)

    def stop(self, reason: str = "") -> None:
        """End: all is done, or this worker fails for a reason, which the others are told."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * BEAT_SECONDS)
        try:
            if reason:
                self._store.set("stopped", f"{self._rank}:{self._name} has stopped: {reason}")
            self._store.set(f"sign/{self._rank}", "done")
        except RuntimeError:  # whoever keeps the store has ended
            pass

    def _watch(self) -> None:
        seen, since, count = "", time.monotonic(), 0
        while not self._over.wait(BEAT_SECONDS):
            count += 1
            try:
                self._store.set(f"sign/{self._rank}", str(count))
                if self._store.check(["stopped"]):
                    self._end(self._store.get("stopped").decode())
                key = f"sign/{self._next}"
                sign = self._store.get(key).decode() if self._store.check([key]) else ""
            except RuntimeError:
                continue  # the store has gone: torchrun ends all
            if sign != seen or sign == "done":
                seen, since = sign, time.monotonic()
            elif time.monotonic() - since > self._silent:
                self._accuse()

    def _accuse(self) -> None:
        """Tell all workers that the next one is silent."""
        try:
            name = self._store.get(f"name/{self._next}").decode()
            reason = f"{name} has stopped: no heartbeat for {self._silent:.0f} seconds; it was killed, or hangs"
            self._store.set("stopped", f"{self._next}:{reason}")
        except RuntimeError:
            return
        self._end(f"{self._next}:{reason}")

    def _end(self, said: str) -> None:
        """End this process, whatever its other threads wait for."""
        who, _, reason = said.partition(":")
        if int(who) == self._rank or self._over.is_set():
            return
        print(f"interlace: {' '.join(reason.split())}", file=sys.stderr, flush=True)
        os._exit(1)
