"""One SQLite file that holds every request that was sent, its answer, and the path of every row.

A request is written before it is sent, and completed when its answer arrives. A killed process therefore loses at most
the requests in flight, and the budget always holds.

The file is in WAL mode: several processes on one machine may use it at once (not over a network file system). A killed
process loses nothing that was written. A machine that loses power may lose the last moments, never the file.
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
        requests: requests, their answers, and the budget.
        rows: the path of each row through the steps.
    """

    def __init__(self, path: Path, run: str, *, create: bool = True, write: bool = True):
        """Open a ledger, or begin one.

        Args:
            run: the run whose budget requests count against.
            create: whether a missing or empty file is begun.
            write: if False, the ledger is only read and not changed.

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
        """Record that this process has ended, and close the file."""
        if self.file.owner:
            with contextlib.suppress(Failure, DataError), self.file.transaction():  # else others find it gone
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
        """Record a sign of life of this process, for processes on other machines."""
        with self.file.transaction():
            self.file.db.execute("UPDATE owners SET beat = ? WHERE id = ?", (time.time(), self.file.owner))

    def _gone(self) -> list[int]:
        """Return the ids of processes that ended without recording it."""
        gone = []
        for owner, host, pid, began, beat in self.file.db.execute("SELECT id, host, pid, born, beat FROM owners"):
            here = host == platform.node()
            whole = isinstance(pid, int) and isinstance(beat, float)  # else no process wrote it
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
        """Mark requests in flight of processes that are gone as lost, and return how many; they can be sent again.

        They may have been charged, so what was reserved for them stays taken from the budget.
        """
        with self.file.transaction():
            return sum(self._abandon(owner) for owner in self._gone())

    def keep(self, name: str, value: Any) -> None:
        """Store a small value for the next process, such as a rate limit."""
        with self.file.transaction():
            self.file.db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (name, time.time(), canonical(value)))

    def recall(self, name: str) -> tuple[float, Any] | None:
        """Return (seconds since it was stored, numbers by name) of a value that `keep` stored, or None.

        Such a value is only a hint: a damaged one counts as missing.
        """
        with self.file.errors():
            query = "SELECT saved, CAST(value AS BLOB) FROM kept WHERE name = ?"
            found = self.file.db.execute(query, (name,)).fetchone()
        try:
            saved, values = float(found[0]), self.file.object(found[1], "table kept")
        except (TypeError, ValueError, DataError):
            return None
        good = all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in values.values())
        return (max(0.0, time.time() - saved), values) if good else None
