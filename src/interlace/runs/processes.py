"""Run work in several processes at once, each in a folder of its own; finished work is never repeated."""

from __future__ import annotations

import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS, TELL_SECONDS = 0.05, 0.5
PARENT = "INTERLACE_PARENT"


@dataclass(frozen=True)
class Job:
    """One process to run.

    Attributes:
        name: the name by which it is shown while it runs.
        folder: the folder for its output, log.txt.
        command: what is run, on one thread.
    """

    name: str
    folder: Path
    command: tuple[str, ...]


def one_thread() -> dict[str, str]:
    """Return the environment for a process that uses one core and knows which process started it."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """End this process soon after the one that started it, however that ended: two must never write in one folder."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(TELL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_all(
    pending: Callable[[], Sequence[Job]],
    jobs: int,
    check: Callable[[Job, int], None],
    tell: Callable[[Sequence[str]], None],
) -> None:
    """Run what is pending, at most `jobs` at once, until nothing is.

    Args:
        pending: the jobs that can be run now and have no result, asked again when one has ended.
        check: (a job that ended, its exit status); raises if it must not go on.
        tell: (names of the jobs that run), every half second.
    """
    running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
    told = -math.inf
    try:
        while True:
            for job in pending():
                if len(running) < jobs and job.name not in running:
                    running[job.name] = (job, start(job))
            if not running:
                return
            while all(process.poll() is None for _, process in running.values()):
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    tell(list(running))
                time.sleep(POLL_SECONDS)
            for name, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    check(job, process.returncode)
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()


def start(job: Job) -> subprocess.Popen[bytes]:
    """Start a job; what it prints goes to log.txt in its folder."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / "log.txt", "wb") as log:
        return subprocess.Popen(list(job.command), stdout=log, stderr=log, env=one_thread())


def last_line(folder: Path, status: int) -> str:
    """Return the last line that a failed process printed."""
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {status}"
