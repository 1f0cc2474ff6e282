"""The run folder: the config that was asked for, versions, the machine, and hashes of what was read."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w

from interlace.base.errors import RunError
from interlace.base.files import PARTIAL, disk_errors, user_path, write_file
from interlace.runs.lock import INSIDE
from interlace.runs.versions import versions

CONFIG, METRICS = "run.toml", "metrics.jsonl"
NOT_CONFIG = ("versions", "machine", "checked")  # tables of run.toml that are no part of what was asked for
SHOWN = 5  # differences in a message
Config = dict[str, Any]
EMPTY = ("data", INSIDE)  # what a folder may hold before its run begins


class RunFolder:
    """The folder of a long command; its run.toml says what was asked for."""

    def __init__(
        self, path: Path, filled: Callable[[Config], Config] = lambda config: config, fixed: Sequence[str] = ("",)
    ):
        """Store the path; the folder need not exist yet.

        Args:
            filled: writes out the defaults of keys that a config from before they existed lacks.
            fixed: keys that a run which has begun cannot change, with all below them; the empty one stands for all.
        """
        self.path, self._filled, self._fixed = user_path(path, RunError), filled, fixed

    @classmethod
    def open(cls, path: Path, config: Config) -> Self:
        """Start a run, or resume the one that this config started; a run without a step is replaced.

        Raises:
            RunError: the folder belongs to something else; the message names the differences.
        """
        run = cls(path)
        run.take_up(config)
        return run

    def take_up(self, config: Config, changes: Collection[str] = ()) -> None:
        """Start the run, or resume the one that this config started; a run without a step is replaced.

        changes: keys that may differ from those it was started with.

        Raises:
            RunError: the folder belongs to something else; the message names the differences.
        """
        known = self.belongs_to(config, changes)
        if known and not list(differences(self._filled(self.config()), config)):
            return
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        kept = {name: table for name, table in self.tables().items() if name in NOT_CONFIG} if known else {}
        write_file(self.file, tomli_w.dumps({**config, "versions": versions(), "machine": {}, **kept}))

    def remember(self, *, machine: dict[str, Any] | None = None, **more: Any) -> None:
        """Record where a run is first trained, and more, such as its precision; what is recorded already stays."""
        tables = self.tables()
        known = tables.get("machine", {})
        found = {**(machine or {}), **more, **known}
        if found != known and not (known and machine):
            write_file(self.file, tomli_w.dumps({**tables, "machine": found}))

    def belongs_to(self, config: Config, changes: Collection[str] = ()) -> bool:
        """Return whether the folder holds the run of this config; False if there is none, or it has not begun.

        changes: keys that may differ from those it was started with.

        Raises:
            RunError: it belongs to something else.
        """
        if self.file.is_file():
            found = list(differences(self._filled(self.config()), config))
            if not found:
                return True
            if not self.has_begun():
                return False
            self._check_changes(found, changes)
            return True
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: exists and is not a run folder; name another --out")
        if file := next((p for p in self.path.parents if p.exists() and not p.is_dir()), None):
            raise RunError(f"{self.path}: lies below {file}, which is a file; name another --out")
        if self.path.exists() and any(p for p in self.path.iterdir() if p.name not in EMPTY):
            raise RunError(f"{self.path}: exists and is not a run folder; name another --out")
        return False

    def _check_changes(self, found: Sequence[tuple[str, Any, Any]], changes: Collection[str]) -> None:
        """Raise RunError for the differences that are not allowed."""
        fixed = [one for one in found if any(_below(one[0], key) for key in self._fixed)]
        refused = [one for one in found if one in fixed or not any(_below(one[0], key) for key in changes)]
        if not refused:
            return
        said = ", ".join(f"{key} was {before!r:.80} and is now {now!r:.80}" for key, before, now in refused[:SHOWN])
        more = f", and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        keys = ",".join(key for key, _, _ in refused)
        remedy = "" if fixed else f", or go on with --allow-changes {keys}"
        raise RunError(f"{self.path}: belongs to a different run ({said}{more}); name another --out{remedy}")

    def has_begun(self) -> bool:
        """Return whether the folder holds work that would be lost."""
        logged = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        found = self.path.iterdir() if self.path.is_dir() else ()
        others = {p.name for p in found if not p.name.endswith(PARTIAL)}
        return logged or bool(others - {self.file.name, self.metrics_file.name, *EMPTY})

    def withdraw(self) -> None:
        """Take back a run that could not begin: its config goes, prepared data stay."""
        if not self.has_begun():
            self.file.unlink(missing_ok=True)
            self.metrics_file.unlink(missing_ok=True)

    @property
    def file(self) -> Path:
        """run.toml: what was asked for, the versions and the machine, and hashes of what was read."""
        return self.path / CONFIG

    def tables(self) -> dict[str, Any]:
        """Return all of run.toml.

        Raises:
            RunError: it is damaged.
        """
        try:
            data = tomllib.loads(self.file.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise RunError(f"{self.file}: is not TOML: {error}; put it back, or name another --out") from None
        if not data:
            raise RunError(f"{self.file}: is empty; put it back, or name another --out")
        for name in NOT_CONFIG:
            if not isinstance(data.get(name, {}), dict):
                raise RunError(f"{self.file}: {name} must be a table, got {data[name]!r:.80}; put it back")
        return data

    def config(self) -> dict[str, Any]:
        """Return the config that was asked for, as run.toml holds it."""
        return {key: table for key, table in self.tables().items() if key not in NOT_CONFIG}

    def check(self, name: str, found: str, what: str) -> None:
        """Compare the hash of something that the run reads with the one it began with; until it begins, record it.

        Raises:
            RunError: it is another one; `what` names it.
        """
        tables = self.tables()
        known = tables.get("checked", {}).get(name)
        if known is None or (known != found and not self.has_begun()):
            checked = {**tables.get("checked", {}), name: found}
            write_file(self.file, tomli_w.dumps({**tables, "checked": checked}))
        elif known != found:
            raise RunError(
                f"{what}: is not what this run began with (its hash differs); put it back, or name another --out"
            )

    @property
    def metrics_file(self) -> Path:
        """metrics.jsonl in the folder of a training run: one JSON object per line."""
        return self.path / METRICS


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, old, new) of each place where two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return
    old, new = (list(x) if isinstance(x, tuple) else x for x in (old, new))
    if old != new:
        yield key, old, new


def _below(key: str, table: str) -> bool:
    """Return whether a dotted key is another, or lies below it; all lie below the empty one."""
    return not table or key == table or key.startswith(f"{table}.")
