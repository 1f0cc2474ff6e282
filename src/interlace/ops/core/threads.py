"""How many threads a step takes: as many as there are processors that nobody else keeps busy.

A parallel part ends when its last thread does. Where another process has a thread's processor, that is one of its turns
later: several milliseconds, in which the others wait. A step of decoding has a hundred such parts.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable

PERIOD_SECONDS = 0.25  # between two looks
STAT = "/proc/stat"


class Free:
    """The processors of this process that others leave free, as the system's counters say; all where it has none."""

    def __init__(self, stat: str = STAT, clock: Callable[[], float] = time.monotonic):
        """stat: the file that counts what processors do."""
        self._stat, self._clock, self._last, self.processors = stat, clock, float("-inf"), _processors()
        self._ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._before: tuple[float, float, float] | None = None
        self.count = max(1, len(self.processors))

    def __call__(self) -> int:
        """Return how many there are, at least 1; the counters are read a few times a second."""
        now = self._clock()
        if now - self._last < PERIOD_SECONDS:
            return self.count
        self._last = now
        try:
            busy = self._busy_seconds()
        except (OSError, ValueError, IndexError):
            return self.count
        own = resource.getrusage(resource.RUSAGE_SELF)
        mine, before = own.ru_utime + own.ru_stime, self._before
        self._before = (now, busy, mine)
        if before is not None and now > before[0]:
            others = (busy - before[1] - (mine - before[2])) / (now - before[0])
            self.count = max(1, min(len(self.processors), round(len(self.processors) - others)))
        return self.count

    def _busy_seconds(self) -> float:
        """Return the seconds that our processors have worked, for anybody; what a host took from them counts too."""
        total = 0
        with open(self._stat, encoding="ascii") as file:
            for line in file:
                name, *numbers = line.split()
                if name[3:].isdecimal() and name.startswith("cpu") and int(name[3:]) in self.processors:
                    user, nice, system, _idle, _waits, irq, softirq, steal = map(int, numbers[:8])
                    total += user + nice + system + irq + softirq + steal
        return total / self._ticks


def _processors() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
