"""Run jobs in processes that may hang, crash or lose their GPU, and say what each found as it comes. No torch here."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from gpu_jobs import Job

PARENT_DEATH = 1  # PR_SET_PDEATHSIG
Facts = dict[str, Any]
Say = Callable[[Job, Facts], None]


class Skip(Exception):
    """There is nothing to measure here, which is no failure."""


def serve(line: Connection) -> None:
    """Do one job after another, in a process of its own, until told to stop or until the GPU is lost."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)  # whatever ends the parent ends this
    while (given := line.recv()) is not None:
        job, facts = given
        error = skipped = ""
        try:
            module, function = job.work.split(":")
            for found in getattr(importlib.import_module(module), function)(facts, *job.arguments):
                line.send(found)
        except Skip as reason:
            skipped = str(reason)
        except Exception as reason:
            lines = str(reason).strip().splitlines() or [""]
            error = f"{type(reason).__name__}: {lines[0]:.300}"
        alive = importlib.import_module("gpu_clock").released()
        line.send({"end": True, "error": error, "skipped": skipped})
        if not alive:  # an illegal access: nothing more can be asked of this process
            return


class Worker:
    """A process, and the job that it does."""

    def __init__(self) -> None:
        """Start it."""
        context = multiprocessing.get_context("spawn")
        self.line, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,))
        self.process.start()
        other.close()
        self.job: Job | None = None
        self.until = 0.0

    def give(self, job: Job, facts: Facts, until: float) -> None:
        """Hand it a job, which must end before `until`."""
        self.job, self.until, self.began = job, until, time.monotonic()
        self.line.send((job, facts))

    def end(self) -> None:
        """Kill it, and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has not made a group of its own yet
            self.process.kill()
        self.process.join()
        self.line.close()


class Crew:
    """Workers that do a list of jobs, some at a time.

    Attributes:
        facts: what is known of the machine; what a job finds is added.
        deadline: when all must end, by time.monotonic().
    """

    def __init__(self, say: Say, facts: Facts, deadline: float) -> None:
        """say: called with each job and each line that it gives."""
        self.say, self.facts, self.deadline = say, facts, deadline
        self.workers: list[Worker] = []

    def run(self, jobs: Sequence[Job], size: int, until: float) -> None:
        """Do jobs, at most `size` at a time; none begins after `until`, none ends after the deadline."""
        queue = deque(jobs)
        while len(self.workers) > size:
            self.workers.pop().end()
        while queue or any(w.job for w in self.workers):
            while queue and (worker := self._free(size)) is not None:
                self._begin(worker, queue.popleft(), until)
            busy = [w for w in self.workers if w.job is not None]
            if not busy:
                continue
            first = min(w.until for w in busy)
            ready = wait([w.line for w in busy], timeout=max(0.0, first - time.monotonic()))
            for worker in busy:
                if worker.line in ready:
                    self._hear(worker)
                elif time.monotonic() >= worker.until:
                    self._expired(worker)

    def end(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.end()
        self.workers = []

    def _free(self, size: int) -> Worker | None:
        for worker in self.workers:
            if worker.job is None:
                if worker.process.is_alive():
                    return worker
                self._drop(worker)
                break
        if len(self.workers) < size:
            self.workers.append(Worker())
            return self.workers[-1]
        return None

    def _begin(self, worker: Worker, job: Job, until: float) -> None:
        now, found = time.monotonic(), self.facts.get("found")
        if now >= until:
            self.say(job, {"end": True, "skipped": "no time is left", "seconds": 0.0})
        elif job.needs and found is not None and job.needs not in found:
            self.say(job, {"end": True, "skipped": f"{job.needs} is not installed", "seconds": 0.0})
        else:
            try:
                worker.give(job, self.facts, min(now + job.seconds, self.deadline))
            except OSError:
                self._drop(worker)
                self.say(job, {"end": True, "error": "the process ended before it began", "seconds": 0.0})

    def _hear(self, worker: Worker) -> None:
        job, seconds = worker.job, time.monotonic() - worker.began
        assert job is not None
        try:
            found = worker.line.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            self._drop(worker)
            code = worker.process.exitcode
            self.say(job, {"end": True, "error": f"the process ended with code {code}", "seconds": seconds})
            return
        self.facts.update(found.pop("facts", {}))
        if found.get("end"):
            worker.job, found["seconds"] = None, seconds
        self.say(job, found)

    def _expired(self, worker: Worker) -> None:
        job, seconds = worker.job, time.monotonic() - worker.began
        assert job is not None
        self._drop(worker)
        own = seconds >= job.seconds
        reason = f"it took more than {job.seconds:.0f} s" if own else f"no time was left after {seconds:.0f} s"
        key = "error" if own and not job.needs else "skipped"  # a peer may tune itself for as long as it likes
        self.say(job, {"end": True, key: reason, "seconds": seconds})

    def _drop(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.end()
