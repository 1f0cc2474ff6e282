"""The requests of a ledger: claimed before they are sent, finished with their answer, and counted in a budget."""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from typing import Any

from interlace.distill.ledger.connection import Connection
from interlace.distill.ledger.records import STATES, Limits, Record, Reserve, Spent, check_budget


class Requests:
    """Requests, their answers, and what they took from the budget."""

    def __init__(self, file: Connection):
        """file: the ledger's connection."""
        self.file, self.db, self.run = file, file.db, file.run

    def find(self, key: str) -> Record | None:
        """Return the record of a request, or None if it has no answer yet."""
        names, place = ", ".join(f.name for f in fields(Record)), f"table requests, request {key}"
        with self.file.errors(place):
            found = self.db.execute(f"SELECT {names} FROM requests WHERE key = ?", (key,)).fetchone()
        if found is None or found[2] in ("sent", "lost"):
            return None
        kinds = {"str": (str,), "State": (str,), "int": (int,), "float": (int, float)}
        for field, value in zip(fields(Record), found, strict=True):
            if not isinstance(value, kinds[str(field.type)]) or (field.name == "state" and value not in STATES):
                raise self.file.damaged(place, f"{field.name} is {value!r:.60}")
        return Record(*found)

    def claim(self, key: str, teacher: str, body: str, reserve: Reserve, limits: Limits) -> bool:
        """Write a request before it is sent; return False if another process is sending it, or it has an answer.

        Raises:
            Exhausted: the budget does not allow it.
        """
        with self.file.transaction():
            state = self.db.execute("SELECT state FROM requests WHERE key = ?", (key,)).fetchone()
            if state is not None and state[0] != "lost":
                return False
            check_budget(self.spent(), reserve, limits)
            self.db.execute(
                "INSERT OR REPLACE INTO requests (key, run, teacher, body, state, owner, reserved_tokens, "
                "reserved_cost, sent) VALUES (?, ?, ?, ?, 'sent', ?, ?, ?, ?)",
                (key, self.run, teacher, body, self.file.owner, reserve.tokens, reserve.cost, time.time()),
            )
            self._release(reserve, -1)
        return True

    def _release(self, reserve: Reserve, times: int) -> None:
        self.db.execute(
            "UPDATE spent SET reserved_requests = reserved_requests - ?, reserved_tokens = reserved_tokens - ?, "
            "reserved_cost = reserved_cost - ? WHERE run = ?",
            (times, times * reserve.tokens, times * reserve.cost, self.run),
        )

    def finish(self, record: Record, reserve: Reserve) -> None:
        """Write the answer to a request that was claimed, release its reserve and count what it took."""
        with self.file.transaction():
            self._write(record)
            self._release(reserve, 1)
            self.db.execute(
                "UPDATE spent SET requests = requests + 1, tokens = tokens + ?, cost = cost + ? WHERE run = ?",
                (record.tokens, record.cost, self.run),
            )

    def fail(self, record: Record) -> None:
        """Write the result of a request whose last try has failed; it is not tried again."""
        with self.file.transaction():
            self._write(record)

    def _write(self, record: Record) -> None:
        values = asdict(record)
        values.pop("teacher")
        key = values.pop("key")
        names = ", ".join(f"{name} = ?" for name in values)
        self.db.execute(
            f"UPDATE requests SET {names}, ended = ?, owner = NULL WHERE key = ?", (*values.values(), time.time(), key)
        )

    def release_try(self, key: str, reserve: Reserve, charged: bool) -> None:
        """Record that a try failed; the request can be claimed again.

        charged: whether the teacher may have charged it, as when the connection broke after it was sent. What was
            reserved then stays taken from the budget.
        """
        lost = "lost_requests = lost_requests + 1, lost_tokens = lost_tokens + ?, lost_cost = lost_cost + ?"
        with self.file.transaction():
            self.db.execute("UPDATE requests SET state = 'lost', owner = NULL WHERE key = ?", (key,))
            self._release(reserve, 1)
            if charged:
                self.db.execute(f"UPDATE spent SET {lost} WHERE run = ?", (reserve.tokens, reserve.cost, self.run))
            else:
                self.db.execute("UPDATE spent SET requests = requests + 1 WHERE run = ?", (self.run,))

    def unclaim(self, key: str, reserve: Reserve) -> None:
        """Take back a claim whose request was not sent, or was rejected for a rate limit."""
        with self.file.transaction():
            self.db.execute("DELETE FROM requests WHERE key = ? AND state = 'sent'", (key,))
            self._release(reserve, 1)

    def spent(self) -> Spent:
        """Return what this run has taken from its budget."""
        names = ", ".join(f.name for f in fields(Spent))
        with self.file.errors():
            found = self.db.execute(f"SELECT {names} FROM spent WHERE run = ?", (self.run,)).fetchone()
        for name, value in zip(names.split(", "), found or (), strict=False):
            if not isinstance(value, int | float):
                raise self.file.damaged(f"table spent, run {self.run}", f"{name} is {value!r:.60}")
        return Spent(*found) if found else Spent()

    def usage(self, stage: str) -> list[dict[str, Any]]:
        """Return what a stage's rows took, by teacher and state; a request that several rows used counts once."""
        names = ("teacher", "state", "requests", "prompt_tokens", "answer_tokens", "cost", "seconds", "tries", "waits")
        with self.file.errors():
            found = self.db.execute(
                "SELECT teacher, state, count(*), sum(prompt_tokens), sum(answer_tokens), sum(cost), sum(seconds), "
                "sum(tries), sum(waits) FROM requests WHERE key IN (SELECT request FROM uses WHERE stage = ?) "
                "GROUP BY teacher, state ORDER BY teacher, state",
                (stage,),
            ).fetchall()
        self.file.check_texts(f"table requests, of {stage}", teacher=[r[0] for r in found], state=[r[1] for r in found])
        return [dict(zip(names, row, strict=True)) for row in found]
