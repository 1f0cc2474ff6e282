"""Do work that may hang or use much memory (a stranger's template, a pattern) in a process that can be killed."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any
from weakref import WeakSet

from interlace.base.errors import Failure

START_SECONDS = 60.0
BYTES_PER_SECOND = 2 << 20  # of a request, that it is given on top of its seconds
MEMORY_BYTES = 1 << 30  # address space of the process beyond what it starts with
CHILD = "from interlace.sandbox.worker_child import main; main({module!r}, {memory})"


class OutOfBounds(Failure):
    """The work took more time or memory than it was given, or ended its process."""


class Refused(Failure):
    """The work said that its input is wrong; the message is its own."""


class Worker:
    """A process that answers requests one after another; it starts when first asked, and again after it was killed.

    Any thread may ask: each waits until the thread before it has its answer.

    The module it runs has a function `answer(request)`, which takes and returns plain data and raises ValueError for
    wrong input.
    """

    def __init__(self, module: str, seconds: float = 5.0, memory_bytes: int = MEMORY_BYTES):
        """seconds: the time limit of one request."""
        self.module, self.seconds, self.memory_bytes = module, seconds, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._turn = threading.RLock()
        _all.add(self)

    def ask(self, request: Any) -> Any:
        """Return the answer to one request.

        Raises:
            OutOfBounds: it took too long or too much memory; the process is gone, the next request starts another.
            Refused: the input is wrong.
        """
        with self._turn:
            reply = self._exchange(json.dumps(request).encode())
        if "memory" in reply:
            raise OutOfBounds(f"needed more than {self.memory_bytes >> 20} MiB of memory")
        if "refused" in reply:
            raise Refused(reply["refused"])
        return reply["answer"]

    def close(self) -> None:
        """End the process, after the answer that another thread waits for."""
        with self._turn:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                for pipe in (self._process.stdin, self._process.stdout):
                    if pipe is not None:
                        pipe.close()
                self._process, self._ready = None, False

    def forget(self) -> None:
        """Leave the process to the one that started it: after a fork, two would take each other's answers."""
        if self._process is not None:
            self._process.returncode = 0  # it is no child of this process
        self._process, self._ready, self._turn = None, False, threading.RLock()

    def start(self) -> None:
        """Start the process if there is none, without waiting for it."""
        with self._turn:
            if self._process is None:
                self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        code = CHILD.format(module=self.module, memory=self.memory_bytes)
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME")}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],  # nothing is imported from the folder that we are called in
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # keys that are pressed for us, such as Ctrl-C, are not meant for it
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},  # no secret of ours reaches it
        )

    def _exchange(self, raw: bytes) -> Any:
        """Send one request and return what the process replies."""
        self.start()
        try:
            self._wait_until_ready()
            deadline = time.monotonic() + self.seconds + len(raw) / BYTES_PER_SECOND
            self._write(len(raw).to_bytes(8, "big") + raw, deadline)
            size = int.from_bytes(self._read(8, deadline), "big")
            return json.loads(self._read(size, deadline))
        except TimeoutError:
            self.close()
            raise OutOfBounds(f"took longer than {self.seconds:g} seconds and was stopped") from None
        except (BrokenPipeError, EOFError):
            self.close()
            raise OutOfBounds("ended its process") from None
        except BaseException:  # such as a thread that is interrupted: half an answer must not be taken for the next
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        """Wait until the process has started; this does not count as a request's time."""
        if not self._ready:
            try:
                self._read(1, time.monotonic() + START_SECONDS)
            except (EOFError, TimeoutError):
                self.close()
                raise Failure(f"a process for {self.module} could not be started; its error stands above") from None
            self._ready = True

    def _pipes(self) -> tuple[int, int]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin.fileno(), self._process.stdout.fileno()

    def _write(self, raw: bytes, deadline: float) -> None:
        file, _ = self._pipes()
        view = memoryview(raw)
        while view:
            if not select.select([], [file], [], max(0.0, deadline - time.monotonic()))[1]:
                raise TimeoutError
            view = view[os.write(file, view[: select.PIPE_BUF]) :]

    def _read(self, size: int, deadline: float) -> bytes:
        _, file = self._pipes()
        parts = []
        while size:
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(file, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


_all: WeakSet[Worker] = WeakSet()


@atexit.register
def _close_all() -> None:
    for worker in list(_all):
        worker.close()


def _forget_all() -> None:
    for worker in list(_all):
        worker.forget()


os.register_at_fork(after_in_child=_forget_all)


class Workers:
    """Several processes of one kind, for an asyncio loop."""

    def __init__(self, module: str, count: int, seconds: float = 5.0, memory_bytes: int = MEMORY_BYTES):
        """count: how many requests are worked on at once."""
        self._all = [Worker(module, seconds, memory_bytes) for _ in range(count)]
        self._free: asyncio.Queue[Worker] | None = None

    async def ask(self, request: Any) -> Any:
        """Return the answer to one request, as `Worker.ask`, while the loop continues."""
        if self._free is None:
            self._free = asyncio.Queue()
            for worker in self._all:
                self._free.put_nowait(worker)
        worker = await self._free.get()
        try:
            return await asyncio.to_thread(worker.ask, request)
        finally:
            self._free.put_nowait(worker)

    def close(self) -> None:
        """End all the processes."""
        for worker in self._all:
            worker.close()
