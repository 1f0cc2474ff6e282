"""Write in the background: one piece of work at a time, whose error is raised where somebody waits."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """A thread for work that must not hold up a loop. A process does not end before its work is done."""

    def __init__(self) -> None:
        """Begin with nothing to do."""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin work, after what began before is done; raises its error."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="background")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of work that has ended with one; wait for nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the work is done; raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
