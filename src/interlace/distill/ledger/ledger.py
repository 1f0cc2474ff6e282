"""One SQLite file that holds every request ever sent, what came back, and the way of every row.

A request is written down before it is sent and completed when its answer is there, so a killed process loses at most
what was in flight, and a budget holds whatever happens. The file is in WAL mode: several processes may use it at once
on one machine (not over a network file system). A process that is killed loses nothing that was written; a machine
that loses power may lose the last moments, and never the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from interlace.base.errors import DataError, Failure
from interlace.base.files import disk_errors
from interlace.base.text import canonical, clean
from interlace.runs.lock import born

State = Literal["ok", "truncated", "refused", "unparsable", "failed"]
STATES: tuple[State, ...] = ("ok", "truncated", "refused", "unparsable", "failed")
FORMAT = 2  # 1 did not say which stages are ordered
APPLICATION = 0x494C4C47
BUSY_SECONDS = 60
STALE_SECONDS = 120  # without a sign of life, a process on another machine counts as gone
ROOM_BYTES = 4 << 20
ROWS = "table rows, row"
CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)  # what SQLite says of a folder that is read-only
AGAIN = (
    "put back a copy of the file, or have all rows made again from the answers in it, which are not paid for anew: "
    "`sqlite3 {name} 'DELETE FROM rows; DELETE FROM uses; UPDATE stages SET done = 0'` and `interlace distill generate`"
)

TABLES = """
CREATE TABLE owners (id INTEGER PRIMARY KEY, host TEXT, pid INTEGER, born TEXT, beat REAL);
CREATE TABLE requests (
    key TEXT PRIMARY KEY, run TEXT, teacher TEXT, body TEXT, state TEXT, response TEXT, error TEXT,
    prompt_tokens INTEGER, answer_tokens INTEGER, counted TEXT, cost REAL, seconds REAL, tries INTEGER, waits INTEGER,
    owner INTEGER, reserved_tokens INTEGER, reserved_cost REAL, sent REAL, ended REAL
);
CREATE TABLE spent (
    run TEXT PRIMARY KEY, requests INTEGER, tokens INTEGER, cost REAL,
    reserved_requests INTEGER, reserved_tokens INTEGER, reserved_cost REAL,
    lost_requests INTEGER, lost_tokens INTEGER, lost_cost REAL
);
CREATE TABLE stages (stage TEXT PRIMARY KEY, done INTEGER, notes TEXT, ordered INTEGER DEFAULT 0);
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, stage TEXT, key TEXT, parent INTEGER, state TEXT, reason TEXT, delta TEXT
);
CREATE UNIQUE INDEX rows_key ON rows (stage, key);
CREATE INDEX rows_parent ON rows (parent, stage);
CREATE INDEX rows_state ON rows (stage, state, id);
CREATE TABLE uses (stage TEXT, row TEXT, request TEXT);
CREATE TABLE kept (name TEXT PRIMARY KEY, saved REAL, value TEXT);
CREATE INDEX uses_row ON uses (stage, row);
CREATE INDEX requests_open ON requests (owner) WHERE state = 'sent';
"""
FROM_1 = """
ALTER TABLE stages ADD COLUMN ordered INTEGER DEFAULT 0;
DROP INDEX rows_parent;
CREATE INDEX rows_parent ON rows (parent, stage);
DROP INDEX uses_stage;
CREATE INDEX uses_row ON uses (stage, row);
CREATE TABLE kept (name TEXT PRIMARY KEY, saved REAL, value TEXT);
"""


@dataclass
class Record:
    """What became of a request.

    Attributes:
        key: hash of its canonical JSON.
        teacher: who was asked.
        state: one of STATES.
        response: what came back, as it came; "" if nothing did.
        error: why it is not "ok".
        prompt_tokens, answer_tokens: as the teacher counted, or estimated.
        counted: "reported" by the teacher, or "estimated" where its figures are missing or cannot be.
        cost: in USD.
        seconds: from the first try to the answer, waiting for rate limits included.
        tries: how often it was sent; waits: how often it was sent back for a rate limit.
    """

    key: str
    teacher: str
    state: State
    response: str = ""
    error: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    counted: str = "reported"
    cost: float = 0.0
    seconds: float = 0.0
    tries: int = 0
    waits: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class Reserve:
    """The most that a request can take; held back from the budget while it is in flight."""

    tokens: int
    cost: float


@dataclass(frozen=True)
class Limits:
    """Hard limits of a run; None for none. Requests lost in flight count in full."""

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Spent:
    """What a run has taken from its budget.

    Attributes:
        requests, tokens, cost: of answers that came.
        reserved_*: held back for what is in flight.
        lost_*: held back for what was in flight when a process was killed: it may have been charged, nobody knows.
    """

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0
    reserved_requests: int = 0
    reserved_tokens: int = 0
    reserved_cost: float = 0.0
    lost_requests: int = 0
    lost_tokens: int = 0
    lost_cost: float = 0.0


class Exhausted(Failure):
    """The budget does not allow another request.

    passing: whether it may, once what is in flight has ended and took less than was held back for it.
    """

    def __init__(self, message: str, passing: bool):
        """Say why."""
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Row:
    """A row at the end of a step.

    Attributes:
        id: grows with time.
        key: the same in every run of the same recipe; sorts as the rows of the source lie.
        state: "ok" if it went on, "dropped", or one of STATES that ended it.
        reason: why it ended.
        values: every column it has.
    """

    id: int
    key: str
    state: str
    reason: str
    values: dict[str, Any]


@dataclass(frozen=True)
class NewRow:
    """A row to write; `parent` is the row it came from, and `delta` the columns that are new or changed."""

    key: str
    delta: dict[str, Any]
    parent: int | None = None
    state: str = "ok"
    reason: str = ""
    requests: tuple[str, ...] = ()


class Ledger:
    """An open ledger; use it from one thread."""

    def __init__(self, path: Path, run: str, *, create: bool = True, write: bool = True):
        """Open, or begin.

        Args:
            run: whose budget requests count against.
            create: whether a missing or empty file is begun.
            write: False only reads, and changes nothing.

        Raises:
            DataError: it is not a ledger, is damaged, or was written by a newer version; it is left as it is.
        """
        self.path, self.run, self.owner, self.writable = path, run, 0, write
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        there = path.is_file() and path.stat().st_size > 0
        if not there and not create:
            raise DataError(
                f"{path}: the ledger of this run is {'empty' if path.is_file() else 'missing'}; put it back, or name a "
                "new run folder, which pays for everything anew"
            )
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self.db = self._connect(path) if write else self._connect_to_read()
        try:
            if there:
                self._check(whole=write)
            if write:
                self._begin_file()
                self.owner = self._register()
                self._hold_room()
                self.recover()
            else:
                self.db.execute("PRAGMA query_only = 1")
        except BaseException:
            self._close()
            raise

    @staticmethod
    def _connect(path: Path, options: str = "") -> sqlite3.Connection:
        where = path.absolute().as_uri() + options
        return sqlite3.connect(where, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)

    def _connect_to_read(self) -> sqlite3.Connection:
        """A connection that leaves the file as it is, on a read-only disk too.

        SQLite makes two files beside one in WAL mode to read it, which a read-only folder refuses. There the file is
        read as it stands; or a copy is, where a killed process left changes in the file ending in -wal.
        """
        file = self.path.resolve()
        changes = file.with_name(f"{file.name}-wal")
        db = self._connect(file, "?mode=ro" if changes.is_file() else "?mode=rw")  # rw removes what it made beside it
        try:
            db.execute("PRAGMA schema_version").fetchone()
            return db
        except sqlite3.OperationalError as error:
            db.close()
            if error.sqlite_errorcode & 0xFF not in CANNOT_WRITE:
                raise
        except sqlite3.DatabaseError:  # no database, which is said later
            return db
        if not changes.is_file() or not changes.stat().st_size:
            return self._connect(file, "?mode=ro&immutable=1")
        self._copy = tempfile.TemporaryDirectory(prefix="interlace-ledger-")
        with disk_errors(Path(self._copy.name)):
            for name in (file, changes):
                shutil.copyfile(name, Path(self._copy.name) / name.name)
        return self._connect(Path(self._copy.name) / file.name)

    def _check(self, whole: bool) -> None:
        """Whether the file is a ledger of a version that is known, and is `whole`, if that matters."""
        found = "ok"
        try:
            application = self.db.execute("PRAGMA application_id").fetchone()[0]
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            tables = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables:
                return
            if application != APPLICATION:
                raise DataError(f"{self.path}: is a database, but no ledger; it was left as it is")
            if version > FORMAT:
                raise DataError(
                    f"{self.path}: was written by a newer interlace (format {version}, this one knows {FORMAT}); "
                    "install that version; the file was left as it is"
                )
            if whole:
                found = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            with self._errors():
                raise error
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise DataError(
                f"{self.path}: is damaged ({' '.join(found.split())}); it was left as it is; save what is whole with "
                f"`sqlite3 {self.path.name} .recover | sqlite3 recovered.sqlite` and name that file"
            )

    def _begin_file(self) -> None:
        with self._errors():
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = NORMAL")
            with self._transaction():
                version = self.db.execute("PRAGMA user_version").fetchone()[0]
                if version < FORMAT:
                    for statement in (FROM_1 if version else TABLES).split(";"):
                        self.db.execute(statement)
                    self.db.execute(f"PRAGMA application_id = {APPLICATION}")
                    self.db.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _errors(self, place: str = "") -> Iterator[None]:
        """SQLite's refusals in plain words; `place` says where in the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "full" in text or "disk I/O" in text:
                raise Failure(f"{self.path}: the disk is full; make room and run the same command again") from error
            if "locked" in text or "busy" in text:
                raise Failure(
                    f"{self.path}: another process has held it for {BUSY_SECONDS} seconds; is one stopped in the "
                    "debugger, or does the file lie on a network file system?"
                ) from error
            if "readonly" in text or ("unable to open" in text and self.writable):
                raise Failure(f"{self.path}: cannot be written: it, its folder or its disk is read-only") from error
            if "decode" in text:
                raise self._damaged(place, " ".join(text.split())[:200]) from error
            raise Failure(f"{self.path}: cannot be used: {text}") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: is damaged: {error}; it was left as it is") from error

    def _damaged(self, place: str, why: str) -> DataError:
        """The error for a value that no ledger wrote there."""
        remedy = AGAIN.format(name=self.path.name) if place.startswith(ROWS) else "put back a copy of the file"
        return DataError(f"{self.path}{place and ': '}{place}: is damaged: {why}; {remedy}")

    def _check_texts(self, place: str, **columns: Sequence[Any]) -> None:
        """Raise DataError where a value of a column is no text."""
        for name, values in columns.items():
            for value in values:
                if not isinstance(value, str):
                    raise self._damaged(place, f"{name} is {value!r:.60}")

    def _object(self, text: Any, place: str) -> dict[str, Any]:
        """The JSON object that was kept at a place of the file.

        Raises:
            DataError: it is none.
        """
        try:
            found = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(place, f"not JSON ({error})") from None
        if not isinstance(found, dict):
            raise self._damaged(place, f"not a JSON object, but {found!r:.60}")
        return found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything or nothing; where the disk is full, what was kept back for this moment is given up first."""
        with self._errors():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self._commit()
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def _commit(self) -> None:
        try:
            self.db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "full" not in str(error) or not self._give_up_room() or not self.db.in_transaction:
                raise
            self.db.execute("COMMIT")

    def _room(self, owner: int) -> Path:
        return self.path.with_name(f"{self.path.name}.room-{owner}")

    def _hold_room(self) -> None:
        """Keep some room on the disk, so that answers in flight can be written down when it is full."""
        file = self._room(self.owner)
        try:
            file.write_bytes(bytes(ROOM_BYTES))
        except OSError as error:
            file.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(f"{self.path}: the disk is full; make room and run the same command again") from error

    def _give_up_room(self) -> bool:
        """Whether there was room kept back, which is free now."""
        file = self._room(self.owner)
        there = file.exists()
        file.unlink(missing_ok=True)
        return there

    def close(self) -> None:
        """Say that this process is gone, and close the file."""
        if self.owner:
            with contextlib.suppress(Failure, DataError), self._transaction():  # or it will be seen to be gone
                self._abandon(self.owner)
        self._close()

    def _close(self) -> None:
        self.db.close()
        if self._copy is not None:
            self._copy.cleanup()

    # --- processes -------------------------------------------------------------------------------------------------

    def _register(self) -> int:
        with self._transaction():
            values = (platform.node(), os.getpid(), born(os.getpid()), time.time())
            made = self.db.execute("INSERT INTO owners (host, pid, born, beat) VALUES (?, ?, ?, ?)", values)
            self.db.execute(
                "INSERT OR IGNORE INTO spent VALUES (?, 0, 0, 0, 0, 0, 0, 0, 0, 0)",
                (self.run,),
            )
            return int(made.lastrowid or 0)

    def beat(self) -> None:
        """A sign of life, for processes on other machines."""
        with self._transaction():
            self.db.execute("UPDATE owners SET beat = ? WHERE id = ?", (time.time(), self.owner))

    def _gone(self) -> list[int]:
        """Processes that have ended without saying so."""
        gone = []
        for owner, host, pid, began, beat in self.db.execute("SELECT id, host, pid, born, beat FROM owners"):
            here = host == platform.node()
            whole = isinstance(pid, int) and isinstance(beat, float)  # or no process wrote it
            if owner == self.owner:
                continue
            if not whole or (born(pid) != began if here else time.time() - beat > STALE_SECONDS):
                gone.append(owner)
        unknown = "SELECT DISTINCT owner FROM requests WHERE state = 'sent' AND owner NOT IN (SELECT id FROM owners)"
        return gone + [r[0] for r in self.db.execute(unknown)]

    def recover(self) -> int:
        """Open up what was in flight in processes that are gone; how many requests that were.

        They may have been charged, so what was held back for them stays taken from the budget.
        """
        with self._transaction():
            return sum(self._abandon(owner) for owner in self._gone())

    def _abandon(self, owner: int) -> int:
        lost = self.db.execute(
            "SELECT run, count(*), sum(reserved_tokens), sum(reserved_cost) FROM requests "
            "WHERE state = 'sent' AND owner = ? GROUP BY run",
            (owner,),
        ).fetchall()
        for run, requests, tokens, cost in lost:
            self.db.execute(
                "UPDATE spent SET lost_requests = lost_requests + ?, lost_tokens = lost_tokens + ?, "
                "lost_cost = lost_cost + ?, reserved_requests = reserved_requests - ?, "
                "reserved_tokens = reserved_tokens - ?, reserved_cost = reserved_cost - ? WHERE run = ?",
                (requests, tokens, cost, requests, tokens, cost, run),
            )
        self.db.execute("UPDATE requests SET state = 'lost' WHERE state = 'sent' AND owner = ?", (owner,))
        self.db.execute("DELETE FROM owners WHERE id = ?", (owner,))
        self._room(owner).unlink(missing_ok=True)
        return sum(row[1] for row in lost)

    # --- requests --------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Record | None:
        """What became of a request, or None if it has no answer yet."""
        names, place = ", ".join(f.name for f in fields(Record)), f"table requests, request {key}"
        with self._errors(place):
            found = self.db.execute(f"SELECT {names} FROM requests WHERE key = ?", (key,)).fetchone()
        if found is None or found[2] in ("sent", "lost"):
            return None
        kinds = {"str": (str,), "State": (str,), "int": (int,), "float": (int, float)}
        for field, value in zip(fields(Record), found, strict=True):
            if not isinstance(value, kinds[str(field.type)]) or (field.name == "state" and value not in STATES):
                raise self._damaged(place, f"{field.name} is {value!r:.60}")
        return Record(*found)

    def claim(self, key: str, teacher: str, body: str, reserve: Reserve, limits: Limits) -> bool:
        """Write a request down before it is sent; False if another process is just sending it, or has an answer.

        Raises:
            Exhausted: the budget does not allow it.
        """
        with self._transaction():
            state = self.db.execute("SELECT state FROM requests WHERE key = ?", (key,)).fetchone()
            if state is not None and state[0] != "lost":
                return False
            check_budget(self.spent(), reserve, limits)
            self.db.execute(
                "INSERT OR REPLACE INTO requests (key, run, teacher, body, state, owner, reserved_tokens, "
                "reserved_cost, sent) VALUES (?, ?, ?, ?, 'sent', ?, ?, ?, ?)",
                (key, self.run, teacher, body, self.owner, reserve.tokens, reserve.cost, time.time()),
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
        """Write down the answer to a request that was claimed."""
        with self._transaction():
            self._write(record)
            self._release(reserve, 1)
            self.db.execute(
                "UPDATE spent SET requests = requests + 1, tokens = tokens + ?, cost = cost + ? WHERE run = ?",
                (record.tokens, record.cost, self.run),
            )

    def fail(self, record: Record) -> None:
        """Write down that a request whose last try was given up gets no other."""
        with self._transaction():
            self._write(record)

    def _write(self, record: Record) -> None:
        values = asdict(record)
        values.pop("teacher")
        key = values.pop("key")
        names = ", ".join(f"{name} = ?" for name in values)
        self.db.execute(
            f"UPDATE requests SET {names}, ended = ?, owner = NULL WHERE key = ?", (*values.values(), time.time(), key)
        )

    def give_up_try(self, key: str, reserve: Reserve, charged: bool) -> None:
        """A try failed; the request can be claimed again.

        charged: whether the teacher may have counted it, as when the connection broke after it was sent; what was held
            back then stays taken.
        """
        lost = "lost_requests = lost_requests + 1, lost_tokens = lost_tokens + ?, lost_cost = lost_cost + ?"
        with self._transaction():
            self.db.execute("UPDATE requests SET state = 'lost', owner = NULL WHERE key = ?", (key,))
            self._release(reserve, 1)
            if charged:
                self.db.execute(f"UPDATE spent SET {lost} WHERE run = ?", (reserve.tokens, reserve.cost, self.run))
            else:
                self.db.execute("UPDATE spent SET requests = requests + 1 WHERE run = ?", (self.run,))

    def unclaim(self, key: str, reserve: Reserve) -> None:
        """Take back a claim whose request was not sent."""
        with self._transaction():
            self.db.execute("DELETE FROM requests WHERE key = ? AND state = 'sent'", (key,))
            self._release(reserve, 1)

    def keep(self, name: str, value: Any) -> None:
        """Remember something small for the next process, such as a rate that was found."""
        with self._transaction():
            self.db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (name, time.time(), canonical(value)))

    def recall(self, name: str) -> tuple[float, Any] | None:
        """(seconds since it was kept, numbers by name), or None; it is a hint, so a damaged one is as good as none."""
        with self._errors():
            query = "SELECT saved, CAST(value AS BLOB) FROM kept WHERE name = ?"
            found = self.db.execute(query, (name,)).fetchone()
        try:
            saved, values = float(found[0]), self._object(found[1], "table kept")
        except (TypeError, ValueError, DataError):
            return None
        good = all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in values.values())
        return (max(0.0, time.time() - saved), values) if good else None

    def spent(self) -> Spent:
        """What this run has taken from its budget."""
        names = ", ".join(f.name for f in fields(Spent))
        with self._errors():
            found = self.db.execute(f"SELECT {names} FROM spent WHERE run = ?", (self.run,)).fetchone()
        for name, value in zip(names.split(", "), found or (), strict=False):
            if not isinstance(value, int | float):
                raise self._damaged(f"table spent, run {self.run}", f"{name} is {value!r:.60}")
        return Spent(*found) if found else Spent()

    # --- rows ------------------------------------------------------------------------------------------------------

    def begin_stage(self, stage: str, ordered: bool = False) -> bool:
        """Whether a stage is done; it is begun if it is not known. An `ordered` one sees all rows that reach it."""
        with self._transaction():
            self.db.execute("INSERT OR IGNORE INTO stages (stage, done, notes) VALUES (?, 0, '{}')", (stage,))
            self.db.execute("UPDATE stages SET ordered = ? WHERE stage = ?", (ordered, stage))
            return bool(self.db.execute("SELECT done FROM stages WHERE stage = ?", (stage,)).fetchone()[0])

    def end_stage(self, stage: str, notes: dict[str, Any]) -> None:
        """All rows of a stage are there."""
        with self._transaction():
            self.db.execute("UPDATE stages SET done = 1, notes = ? WHERE stage = ?", (canonical(notes), stage))

    def notes(self, stage: str) -> dict[str, Any]:
        """What a stage had to say at its end."""
        with self._errors():
            found = self.db.execute("SELECT CAST(notes AS BLOB) FROM stages WHERE stage = ?", (stage,)).fetchone()
        return self._object(found[0], f"table stages, notes of {stage}") if found else {}

    def done(self, stage: str) -> bool:
        """Whether all rows of a stage are there."""
        with self._errors():
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
        with self._transaction():
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
        with self._transaction():
            self._remove([r[0] for r in self.db.execute("SELECT id FROM rows WHERE stage = ?", (stage,)).fetchall()])

    def open_stage(self, stage: str) -> None:
        """More rows may come to a stage."""
        with self._transaction():
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
        with self._transaction():
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
        with self._errors():
            query = "SELECT state, count(*) FROM rows WHERE stage = ? GROUP BY state"
            found = dict(self.db.execute(query, (stage,)).fetchall())
        self._check_texts(f"{ROWS} of {stage}", state=list(found))
        return found

    def reasons(self, stage: str) -> list[tuple[str, str, int]]:
        """(state, reason, how many) of the rows that ended in a stage, most frequent first."""
        with self._errors():
            found = self.db.execute(
                "SELECT state, reason, count(*) FROM rows WHERE stage = ? AND state != 'ok' "
                "GROUP BY state, reason ORDER BY count(*) DESC, reason",
                (stage,),
            ).fetchall()
        self._check_texts(f"{ROWS} of {stage}", state=[r[0] for r in found], reason=[r[1] for r in found])
        return found

    def ended(self, stage: str, state: str, reason: str, limit: int) -> list[int]:
        """Ids of the first rows that ended in a stage for a reason."""
        with self._errors():
            found = self.db.execute(
                "SELECT id FROM rows WHERE stage = ? AND state = ? AND reason = ? ORDER BY id LIMIT ?",
                (stage, state, reason, limit),
            )
            return [r[0] for r in found]

    def waiting(self, upstream: str, stage: str, after: int, limit: int) -> list[int]:
        """Ids of rows that went on from `upstream` and have not been through `stage`, in order of time."""
        with self._errors():
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
            with self._errors():
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
        with self._errors(place):
            found = self.db.execute(
                "SELECT key, state, reason, CAST(delta AS BLOB), parent FROM rows WHERE id = ?", (id_,)
            ).fetchone()
        if found is None:
            raise self._damaged(place, "missing (if another process does rows again, wait until it has ended)")
        key, state, reason, delta, parent = found
        self._check_texts(place, key=[key], state=[state], reason=[reason])
        if parent is not None and (not isinstance(parent, int) or parent >= id_):  # rows come after what they came from
            raise self._damaged(place, f"it came from row {parent!r:.20}, which is not before it")
        return key, state, reason, self._object(delta, place), parent

    def usage(self, stage: str) -> list[dict[str, Any]]:
        """What a stage's rows took, by teacher and state; a request that several rows used counts once."""
        names = ("teacher", "state", "requests", "prompt_tokens", "answer_tokens", "cost", "seconds", "tries", "waits")
        with self._errors():
            found = self.db.execute(
                "SELECT teacher, state, count(*), sum(prompt_tokens), sum(answer_tokens), sum(cost), sum(seconds), "
                "sum(tries), sum(waits) FROM requests WHERE key IN (SELECT request FROM uses WHERE stage = ?) "
                "GROUP BY teacher, state ORDER BY teacher, state",
                (stage,),
            ).fetchall()
        self._check_texts(f"table requests, of {stage}", teacher=[r[0] for r in found], state=[r[1] for r in found])
        return [dict(zip(names, row, strict=True)) for row in found]


def check_budget(spent: Spent, reserve: Reserve, limits: Limits) -> None:
    """Raise Exhausted where another request could pass a limit."""
    for name, more, unit in (("requests", 1, ""), ("tokens", reserve.tokens, ""), ("cost", reserve.cost, " USD")):
        limit = getattr(limits, name)
        if limit is None:
            continue
        used, lost = getattr(spent, name), getattr(spent, f"lost_{name}")
        held = getattr(spent, f"reserved_{name}")
        if used + lost + held + more > limit:
            form = "{:.4f}" if name == "cost" else "{:,}"
            said = f"{form.format(used)} spent"
            said += f", {form.format(lost)} perhaps charged for requests lost in flight" if lost else ""
            said += f", {form.format(held)} held for requests in flight" if held else ""
            raise Exhausted(
                f"max_{name}: {said}, and the next request can take {form.format(more)}, which would pass "
                f"{form.format(limit)}{unit}; raise it in the recipe and run the same command",
                used + lost + more <= limit,
            )
