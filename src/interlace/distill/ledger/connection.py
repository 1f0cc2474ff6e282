"""The SQLite file of a ledger: open, check and write it, and reserve space on the disk for it."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interlace.base.errors import DataError, Failure
from interlace.base.files import disk_errors
from interlace.distill.ledger.schema import APPLICATION, FORMAT, FROM_1, TABLES

BUSY_SECONDS = 60
ROOM_BYTES = 4 << 20
ROWS = "table rows, row"
CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)  # SQLite's errors for a read-only folder
AGAIN = (
    "put back a copy of the file, or have all rows made again from the answers in it, which are not paid for anew: "
    "`sqlite3 {name} 'DELETE FROM rows; DELETE FROM uses; UPDATE stages SET done = 0'` and `interlace distill generate`"
)


class Connection:
    """An open ledger file; use it from one thread.

    Attributes:
        db: SQLite's connection.
        run: the run whose budget requests count against.
        owner: the id of this process in the file; 0 if it only reads.
    """

    def __init__(self, path: Path, run: str, *, create: bool, write: bool):
        """Open the file; see `Ledger`."""
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
        with self.errors():
            self.db = self._connect(path) if write else self._connect_to_read()
        try:
            if there:
                self.check(whole=write)
            if write:
                self.begin_file()
            else:
                self.db.execute("PRAGMA query_only = 1")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.db.close()
        if self._copy is not None:
            self._copy.cleanup()

    @staticmethod
    def _connect(path: Path, options: str = "") -> sqlite3.Connection:
        where = path.absolute().as_uri() + options
        return sqlite3.connect(where, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)

    def _connect_to_read(self) -> sqlite3.Connection:
        """Open a connection that leaves the file unchanged, also on a read-only disk.

        To read a file in WAL mode, SQLite makes two files beside it, which a read-only folder refuses. Then the file is
        opened as immutable. If a killed process left changes in the file ending in -wal, a copy of both is opened
        instead.
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
        except sqlite3.DatabaseError:  # no database: `check` says so
            return db
        if not changes.is_file() or not changes.stat().st_size:
            return self._connect(file, "?mode=ro&immutable=1")
        self._copy = tempfile.TemporaryDirectory(prefix="interlace-ledger-")
        with disk_errors(Path(self._copy.name)):
            for name in (file, changes):
                shutil.copyfile(name, Path(self._copy.name) / name.name)
        return self._connect(Path(self._copy.name) / file.name)

    def check(self, whole: bool) -> None:
        """Check that the file is a ledger of a known version.

        whole: check all its pages too (quick_check).

        Raises:
            DataError: it is not, or it is damaged.
        """
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
            with self.errors():
                raise error
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise DataError(
                f"{self.path}: is damaged ({' '.join(found.split())}); it was left as it is; save what is whole with "
                f"`sqlite3 {self.path.name} .recover | sqlite3 recovered.sqlite` and name that file"
            )

    def begin_file(self) -> None:
        with self.errors():
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = NORMAL")
            with self.transaction():
                version = self.db.execute("PRAGMA user_version").fetchone()[0]
                if version < FORMAT:
                    for statement in (FROM_1 if version else TABLES).split(";"):
                        self.db.execute(statement)
                    self.db.execute(f"PRAGMA application_id = {APPLICATION}")
                    self.db.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def errors(self, place: str = "") -> Iterator[None]:
        """Raise SQLite's errors as ours, in plain words; `place` says where in the file."""
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
                raise self.damaged(place, " ".join(text.split())[:200]) from error
            raise Failure(f"{self.path}: cannot be used: {text}") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: is damaged: {error}; it was left as it is") from error

    def damaged(self, place: str, why: str) -> DataError:
        """Return the error for a value that no ledger wrote at that place."""
        remedy = AGAIN.format(name=self.path.name) if place.startswith(ROWS) else "put back a copy of the file"
        return DataError(f"{self.path}{place and ': '}{place}: is damaged: {why}; {remedy}")

    def check_texts(self, place: str, **columns: Sequence[Any]) -> None:
        """Raise DataError if a value of a column is no text."""
        for name, values in columns.items():
            for value in values:
                if not isinstance(value, str):
                    raise self.damaged(place, f"{name} is {value!r:.60}")

    def object(self, text: Any, place: str) -> dict[str, Any]:
        """Return the JSON object that is stored at a place of the file.

        Raises:
            DataError: there is no JSON object.
        """
        try:
            found = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self.damaged(place, f"not JSON ({error})") from None
        if not isinstance(found, dict):
            raise self.damaged(place, f"not a JSON object, but {found!r:.60}")
        return found

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write everything or nothing; if the disk is full, release the reserved space and try once more."""
        with self.errors():
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
            if "full" not in str(error) or not self._release_disk() or not self.db.in_transaction:
                raise
            self.db.execute("COMMIT")

    def reserve_file(self, owner: int) -> Path:
        return self.path.with_name(f"{self.path.name}.room-{owner}")

    def reserve_disk(self) -> None:
        """Reserve some space on the disk: answers in flight are written there when the disk is full."""
        file = self.reserve_file(self.owner)
        try:
            file.write_bytes(bytes(ROOM_BYTES))
        except OSError as error:
            file.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failure(f"{self.path}: the disk is full; make room and run the same command again") from error

    def _release_disk(self) -> bool:
        """Release the reserved space; return whether there was any."""
        file = self.reserve_file(self.owner)
        there = file.exists()
        file.unlink(missing_ok=True)
        return there
