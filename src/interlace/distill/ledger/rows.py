"""The rows of a ledger: the way of each through the stages of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from interlace.base.text import canonical, clean
from interlace.distill.ledger.connection import ROWS, Connection
from interlace.distill.ledger.records import NewRow, Row


class Rows:
    """Which rows a stage has, how they ended, and what they hold."""

    def __init__(self, file: Connection):
        """file: of the ledger."""
        self.file, self.db = file, file.db

    def begin_stage(self, stage: str, ordered: bool = False) -> bool:
        """Whether a stage is done; it is begun if it is not known. An `ordered` one sees all rows that reach it."""
        with self.file.transaction():
            self.db.execute("INSERT OR IGNORE INTO stages (stage, done, notes) VALUES (?, 0, '{}')", (stage,))
            self.db.execute("UPDATE stages SET ordered = ? WHERE stage = ?", (ordered, stage))
            return bool(self.db.execute("SELECT done FROM stages WHERE stage = ?", (stage,)).fetchone()[0])

    def end_stage(self, stage: str, notes: dict[str, Any]) -> None:
        """All rows of a stage are there."""
        with self.file.transaction():
            self.db.execute("UPDATE stages SET done = 1, notes = ? WHERE stage = ?", (canonical(notes), stage))

    def notes(self, stage: str) -> dict[str, Any]:
        """What a stage had to say at its end."""
        with self.file.errors():
            found = self.db.execute("SELECT CAST(notes AS BLOB) FROM stages WHERE stage = ?", (stage,)).fetchone()
        return self.file.object(found[0], f"table stages, notes of {stage}") if found else {}

    def done(self, stage: str) -> bool:
        """Whether all rows of a stage are there."""
        with self.file.errors():
            found = self.db.execute("SELECT done FROM stages WHERE stage = ?", (stage,)).fetchone()
        return bool(found and found[0])

    def reopen(self, stage: str, states: Sequence[str]) -> int:
        """Let the rows of a stage that ended in these states be made again, by requests sent anew; how many they are.

        All rows of the same parent go with them, and all that came of those in later stages, as do whole stages that
        are ordered, since each of their rows depends on all before. Only requests that ended in these states are
        forgotten, or all of a row's where none did, as where an answer was no list; the others are not paid for again.
        What was spent stays counted.
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
        """Let all rows of a stage be made again, with what came of them; requests stay."""
        with self.file.transaction():
            self._remove([r[0] for r in self.db.execute("SELECT id FROM rows WHERE stage = ?", (stage,)).fetchall()])

    def open_stage(self, stage: str) -> None:
        """More rows may come to a stage."""
        with self.file.transaction():
            self.db.execute("UPDATE stages SET done = 0 WHERE stage = ?", (stage,))

    def _remove(self, ids: Sequence[int]) -> None:
        """Delete rows, those of the same parents, and what came of them; their stages are open again."""
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
        """Rows of a stage by state."""
        with self.file.errors():
            query = "SELECT state, count(*) FROM rows WHERE stage = ? GROUP BY state"
            found = dict(self.db.execute(query, (stage,)).fetchall())
        self.file.check_texts(f"{ROWS} of {stage}", state=list(found))
        return found

    def reasons(self, stage: str) -> list[tuple[str, str, int]]:
        """(state, reason, how many) of the rows that ended in a stage, most frequent first."""
        with self.file.errors():
            found = self.db.execute(
                "SELECT state, reason, count(*) FROM rows WHERE stage = ? AND state != 'ok' "
                "GROUP BY state, reason ORDER BY count(*) DESC, reason",
                (stage,),
            ).fetchall()
        self.file.check_texts(f"{ROWS} of {stage}", state=[r[0] for r in found], reason=[r[1] for r in found])
        return found

    def ended(self, stage: str, state: str, reason: str, limit: int) -> list[int]:
        """Ids of the first rows that ended in a stage for a reason."""
        with self.file.errors():
            found = self.db.execute(
                "SELECT id FROM rows WHERE stage = ? AND state = ? AND reason = ? ORDER BY id LIMIT ?",
                (stage, state, reason, limit),
            )
            return [r[0] for r in found]

    def waiting(self, upstream: str, stage: str, after: int, limit: int) -> list[int]:
        """Ids of rows that went on from `upstream` and have not been through `stage`, in order of time."""
        with self.file.errors():
            found = self.db.execute(
                "SELECT id FROM rows AS up WHERE stage = ? AND state = 'ok' AND id > ? AND NOT EXISTS "
                "(SELECT 1 FROM rows WHERE stage = ? AND parent = up.id) ORDER BY id LIMIT ?",
                (upstream, after, stage, limit),
            )
            return [r[0] for r in found]

    def ordered(self, stage: str, state: str | None = "ok", chunk: int = 500) -> Iterator[Row]:
        """The rows of a stage by key, a chunk in memory at a time; `state` None for all."""
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
        """A row with all its columns: its own over those of the rows it came from.

        Raises:
            DataError: it, or a row it came from, is damaged or gone.
        """
        key, state, reason, values, parent = self._own(id_)
        while parent is not None:
            *_, inherited, parent = self._own(parent)
            values = inherited | values
        return Row(id_, key, state, reason, values)

    def _own(self, id_: int) -> tuple[str, str, str, dict[str, Any], int | None]:
        """(key, state, reason, its own columns, the row it came from) of a row."""
        place = f"{ROWS} {id_}"
        with self.file.errors(place):
            found = self.db.execute(
                "SELECT key, state, reason, CAST(delta AS BLOB), parent FROM rows WHERE id = ?", (id_,)
            ).fetchone()
        if found is None:
            raise self.file.damaged(place, "missing (if another process does rows again, wait until it has ended)")
        key, state, reason, delta, parent = found
        self.file.check_texts(place, key=[key], state=[state], reason=[reason])
        if parent is not None and (not isinstance(parent, int) or parent >= id_):  # rows come after what they came from
            raise self.file.damaged(place, f"it came from row {parent!r:.20}, which is not before it")
        return key, state, reason, self.file.object(delta, place), parent
