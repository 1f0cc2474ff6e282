"""The rows of a ledger: the path of each row through the stages of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from interlace.base.text import canonical, clean
from interlace.distill.ledger.connection import ROWS, Connection
from interlace.distill.ledger.records import NewRow, Row


class Rows:
    """The rows of each stage: which there are, how they ended, and what they hold."""

    def __init__(self, file: Connection):
        """file: the ledger's connection."""
        self.file, self.db = file, file.db

    def begin_stage(self, stage: str, ordered: bool = False) -> bool:
        """Begin a stage if the ledger does not know it; return whether it is done.

        ordered: whether the stage sees all rows that reach it at once.
        """
        with self.file.transaction():
            self.db.execute("INSERT OR IGNORE INTO stages (stage, done, notes) VALUES (?, 0, '{}')", (stage,))
            self.db.execute("UPDATE stages SET ordered = ? WHERE stage = ?", (ordered, stage))
            return bool(self.db.execute("SELECT done FROM stages WHERE stage = ?", (stage,)).fetchone()[0])

    def end_stage(self, stage: str, notes: dict[str, Any]) -> None:
        """Record that all rows of a stage are written, with the step's notes."""
        with self.file.transaction():
            self.db.execute("UPDATE stages SET done = 1, notes = ? WHERE stage = ?", (canonical(notes), stage))

    def notes(self, stage: str) -> dict[str, Any]:
        """Return the notes that a step stored at its end."""
        with self.file.errors():
            found = self.db.execute("SELECT CAST(notes AS BLOB) FROM stages WHERE stage = ?", (stage,)).fetchone()
        return self.file.object(found[0], f"table stages, notes of {stage}") if found else {}

    def done(self, stage: str) -> bool:
        """Return whether all rows of a stage are written."""
        with self.file.errors():
            found = self.db.execute("SELECT done FROM stages WHERE stage = ?", (stage,)).fetchone()
        return bool(found and found[0])

    def reopen(self, stage: str, states: Sequence[str]) -> int:
        """Remove the rows of a stage that ended in these states, and return how many; the run makes them again.

        Removed with them are all rows of the same parent, all rows that later stages made from them, and all rows of
        ordered stages among those, since each of their rows depends on all before it.

        Only requests that ended in these states are forgotten and sent again. If none of a row's requests did, as when
        an answer was no list, all of that row's requests are forgotten. The other requests are not paid for again. What
        was spent stays counted.
        """
        marks = ", ".join("?" * len(states))
        with self.file.transaction():
            ended = self.db.execute(
                f"SELECT id, key FROM rows WHERE stage = ? AND state IN ({marks})", (stage, *states)
            ).fetchall()
            for _, key in ended:
                used = self.db.execute(
                    "SELECT key, state FROM requests WHERE key IN "
                    "(SELECT request FROM uses WHERE stage = ? AND row = ?)",
                    (stage, key),
                ).fetchall()
                forget = [k for k, s in used if s in states] or [k for k, s in used if s != "sent"]
                self.db.executemany("DELETE FROM requests WHERE key = ?", [(k,) for k in forget])
            self._remove([id_ for id_, _ in ended])
        return len(ended)

    def clear_stage(self, stage: str) -> None:
        """Remove all rows of a stage and all rows made from them; the run makes them again, and requests stay."""
        with self.file.transaction():
            self._remove([r[0] for r in self.db.execute("SELECT id FROM rows WHERE stage = ?", (stage,)).fetchall()])

    def open_stage(self, stage: str) -> None:
        """Record that a stage is not done: more rows may come."""
        with self.file.transaction():
            self.db.execute("UPDATE stages SET done = 0 WHERE stage = ?", (stage,))

    def _remove(self, ids: Sequence[int]) -> None:
        """Delete rows, the other rows of their parents, and all rows made from them; their stages are open again."""
        run = self.db.execute
        run("CREATE TEMP TABLE IF NOT EXISTS gone (id INTEGER PRIMARY KEY)")
        run("DELETE FROM gone")
        self.db.executemany("INSERT INTO gone VALUES (?)", [(id_,) for id_ in ids])
        count = -1
        while count != (count := run("SELECT count(*) FROM gone").fetchone()[0]):
            run(
                "INSERT OR IGNORE INTO gone SELECT other.id FROM gone JOIN rows ON rows.id = gone.id "
                "JOIN rows AS other ON other.parent = rows.parent AND other.stage = rows.stage"
            )
            run("INSERT OR IGNORE INTO gone SELECT rows.id FROM gone JOIN rows ON rows.parent = gone.id")
            run(
                "INSERT OR IGNORE INTO gone SELECT id FROM rows WHERE stage IN (SELECT DISTINCT stage FROM gone JOIN "
                "rows USING (id) JOIN stages USING (stage) WHERE ordered)"
            )
        run("DELETE FROM uses WHERE (stage, row) IN (SELECT stage, key FROM gone JOIN rows USING (id))")
        run(
            "UPDATE stages SET done = 0, notes = '{}' WHERE stage IN "
            "(SELECT DISTINCT stage FROM gone JOIN rows USING (id))"
        )
        run("DELETE FROM rows WHERE id IN (SELECT id FROM gone)")

    def add(self, stage: str, rows: Sequence[NewRow]) -> None:
        """Write rows, all or none; a row that is there already stays as it is."""
        with self.file.transaction():
            for row in rows:
                made = self.db.execute(
                    "INSERT OR IGNORE INTO rows (stage, key, parent, state, reason, delta) VALUES (?, ?, ?, ?, ?, ?)",
                    (stage, row.key, row.parent, row.state, clean(row.reason), canonical(row.delta)),
                )
                if made.rowcount:
                    uses = [(stage, row.key, request) for request in row.requests]
                    self.db.executemany("INSERT INTO uses VALUES (?, ?, ?)", uses)

    def count(self, stage: str) -> dict[str, int]:
        """Return the number of rows of a stage, by state."""
        with self.file.errors():
            query = "SELECT state, count(*) FROM rows WHERE stage = ? GROUP BY state"
            found = dict(self.db.execute(query, (stage,)).fetchall())
        self.file.check_texts(f"{ROWS} of {stage}", state=list(found))
        return found

    def reasons(self, stage: str) -> list[tuple[str, str, int]]:
        """Return (state, reason, how many) of the rows that ended in a stage, most frequent first."""
        with self.file.errors():
            found = self.db.execute(
                "SELECT state, reason, count(*) FROM rows WHERE stage = ? AND state != 'ok' "
                "GROUP BY state, reason ORDER BY count(*) DESC, reason",
                (stage,),
            ).fetchall()
        self.file.check_texts(f"{ROWS} of {stage}", state=[r[0] for r in found], reason=[r[1] for r in found])
        return found

    def ended(self, stage: str, state: str, reason: str, limit: int) -> list[int]:
        """Return the ids of the first rows that ended in a stage for a reason."""
        with self.file.errors():
            found = self.db.execute(
                "SELECT id FROM rows WHERE stage = ? AND state = ? AND reason = ? ORDER BY id LIMIT ?",
                (stage, state, reason, limit),
            )
            return [r[0] for r in found]

    def waiting(self, upstream: str, stage: str, after: int, limit: int) -> list[int]:
        """Return the ids of rows that left `upstream` and have not been through `stage`, in order of time."""
        with self.file.errors():
            found = self.db.execute(
                "SELECT id FROM rows AS up WHERE stage = ? AND state = 'ok' AND id > ? AND NOT EXISTS "
                "(SELECT 1 FROM rows WHERE stage = ? AND parent = up.id) ORDER BY id LIMIT ?",
                (upstream, after, stage, limit),
            )
            return [r[0] for r in found]

    def ordered(self, stage: str, state: str | None = "ok", chunk: int = 500) -> Iterator[Row]:
        """Yield the rows of a stage by key, with a chunk in memory at a time; `state` None yields all."""
        last = ""
        wanted = "" if state is None else "AND state = ?"
        while True:
            with self.file.errors():
                found = self.db.execute(
                    f"SELECT id, key FROM rows WHERE stage = ? AND key > ? {wanted} ORDER BY key LIMIT ?",
                    (stage, last, *([] if state is None else [state]), chunk),
                ).fetchall()
            if not found:
                return
            for id_, last in found:  # noqa: B007 - `last` is read above
                yield self.row(id_)

    def row(self, id_: int) -> Row:
        """Return a row with all its columns: its own, then those of the rows it came from.

        Raises:
            DataError: it, or a row it came from, is damaged or gone.
        """
        key, state, reason, values, parent = self._own(id_)
        while parent is not None:
            *_, inherited, parent = self._own(parent)
            values = inherited | values
        return Row(id_, key, state, reason, values)

    def _own(self, id_: int) -> tuple[str, str, str, dict[str, Any], int | None]:
        """Return (key, state, reason, its own columns, id of the row it came from) of a row."""
        place = f"{ROWS} {id_}"
        with self.file.errors(place):
            found = self.db.execute(
                "SELECT key, state, reason, CAST(delta AS BLOB), parent FROM rows WHERE id = ?", (id_,)
            ).fetchone()
        if found is None:
            raise self.file.damaged(place, "missing (if another process does rows again, wait until it has ended)")
        key, state, reason, delta, parent = found
        self.file.check_texts(place, key=[key], state=[state], reason=[reason])
        if parent is not None and (not isinstance(parent, int) or parent >= id_):  # parents have lower ids
            raise self.file.damaged(place, f"it came from row {parent!r:.20}, which is not before it")
        return key, state, reason, self.file.object(delta, place), parent
