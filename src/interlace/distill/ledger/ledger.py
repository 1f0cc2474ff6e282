"""One SQLite file that holds every request ever sent, what came back, and the way of every row.

A request is written down before it is sent and completed when its answer is there, so a killed process loses at most
what was in flight, and a budget holds whatever happens. The file is in WAL mode: several processes may use it at once
on one machine (not over a network file system). A process that is killed loses nothing that was written; a machine
that loses power may lose the last moments, and never the file.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

from interlace.base.errors import DataError, Failure
from interlace.base.text import canonical
from interlace.distill.ledger.connection import Connection
from interlace.distill.ledger.requests import Requests
from interlace.distill.ledger.rows import Rows
from interlace.runs.lock import born

STALE_SECONDS = 120  # without a sign of life, a process on another machine counts as gone


class Ledger:
    """An open ledger; use it from one thread.

    Attributes:
        requests: what was asked, what came back, and the budget.
        rows: the way of each row.
    """

    def __init__(self, path: Path, run: str, *, create: bool = True, write: bool = True):
        """Open, or begin.

        Args:
            run: whose budget requests count against.
            create: whether a missing or empty file is begun.
            write: False only reads, and changes nothing.

        Raises:
            DataError: it is not a ledger, is damaged, or was written by a newer version; it is left as it is.
        """
        self.path = path
        self.file = Connection(path, run, create=create, write=write)
        self.requests, self.rows = Requests(self.file), Rows(self.file)
        try:
            if write:
                self.file.owner = self._register()
                self.file.reserve_disk()
                self.recover()
        except BaseException:
            self.file.close()
            raise

    def close(self) -> None:
        """Say that this process is gone, and close the file."""
        if self.file.owner:
            with contextlib.suppress(Failure, DataError), self.file.transaction():  # or it will be seen to be gone
                self._abandon(self.file.owner)
        self.file.close()

    def _register(self) -> int:
        with self.file.transaction():
            values = (platform.node(), os.getpid(), born(os.getpid()), time.time())
            made = self.file.db.execute("INSERT INTO owners (host, pid, born, beat) VALUES (?, ?, ?, ?)", values)
            self.file.db.execute(
                "INSERT OR IGNORE INTO spent VALUES (?, 0, 0, 0, 0, 0, 0, 0, 0, 0)",
                (self.file.run,),
            )
            return int(made.lastrowid or 0)

    def beat(self) -> None:
        """A sign of life, for processes on other machines."""
        with self.file.transaction():
            self.file.db.execute("UPDATE owners SET beat = ? WHERE id = ?", (time.time(), self.file.owner))

    def _gone(self) -> list[int]:
        """Processes that have ended without saying so."""
        gone = []
        for owner, host, pid, began, beat in self.file.db.execute("SELECT id, host, pid, born, beat FROM owners"):
            here = host == platform.node()
            whole = isinstance(pid, int) and isinstance(beat, float)  # or no process wrote it
            if owner == self.file.owner:
                continue
            if not whole or (born(pid) != began if here else time.time() - beat > STALE_SECONDS):
                gone.append(owner)
        unknown = "SELECT DISTINCT owner FROM requests WHERE state = 'sent' AND owner NOT IN (SELECT id FROM owners)"
        return gone + [r[0] for r in self.file.db.execute(unknown)]

    def _abandon(self, owner: int) -> int:
        lost = self.file.db.execute(
            "SELECT run, count(*), sum(reserved_tokens), sum(reserved_cost) FROM requests "
            "WHERE state = 'sent' AND owner = ? GROUP BY run",
            (owner,),
        ).fetchall()
        for run, requests, tokens, cost in lost:
            self.file.db.execute(
                "UPDATE spent SET lost_requests = lost_requests + ?, lost_tokens = lost_tokens + ?, "
                "lost_cost = lost_cost + ?, reserved_requests = reserved_requests - ?, "
                "reserved_tokens = reserved_tokens - ?, reserved_cost = reserved_cost - ? WHERE run = ?",
                (requests, tokens, cost, requests, tokens, cost, run),
            )
        self.file.db.execute("UPDATE requests SET state = 'lost' WHERE state = 'sent' AND owner = ?", (owner,))
        self.file.db.execute("DELETE FROM owners WHERE id = ?", (owner,))
        self.file.reserve_file(owner).unlink(missing_ok=True)
        return sum(row[1] for row in lost)

    def recover(self) -> int:
        """Open up what was in flight in processes that are gone; how many requests that were.

        They may have been charged, so what was held back for them stays taken from the budget.
        """
        with self.file.transaction():
            return sum(self._abandon(owner) for owner in self._gone())

    def keep(self, name: str, value: Any) -> None:
        """Remember something small for the next process, such as a rate that was found."""
        with self.file.transaction():
            self.file.db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (name, time.time(), canonical(value)))

    def recall(self, name: str) -> tuple[float, Any] | None:
        """(seconds since it was kept, numbers by name), or None; it is a hint, so a damaged one is as good as none."""
        with self.file.errors():
            query = "SELECT saved, CAST(value AS BLOB) FROM kept WHERE name = ?"
            found = self.file.db.execute(query, (name,)).fetchone()
        try:
            saved, values = float(found[0]), self.file.object(found[1], "table kept")
        except (TypeError, ValueError, DataError):
            return None
        good = all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in values.values())
        return (max(0.0, time.time() - saved), values) if good else None
