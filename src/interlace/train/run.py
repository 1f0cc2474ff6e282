"""The run folder: what was asked for, what happened, and checkpoints that are whole or absent."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
import torch

import interlace
from interlace.base.errors import RunError
from interlace.base.files import PARTIAL, disk_errors, new_folder, sha256, step_folders, step_of, user_path, write_file
from interlace.ops.core import kernels
from interlace.runs.lock import INSIDE
from interlace.runs.machine import machine

SUMS = "checksums.json"
KEPT = 2  # checkpoints
NOT_CONFIG = ("versions", "machine", "checked")  # tables of run.toml that are no part of what was asked for
EMPTY = ("data", INSIDE)  # what a folder may hold before its run begins


def versions() -> dict[str, str]:
    """What a run's numbers depend on beside its config."""
    return {"interlace": interlace.__version__, "torch": torch.__version__, "python": platform.python_version()}


def facts(device: str) -> dict[str, Any]:
    """The machine that a run is trained on."""
    active = kernels.active() if kernels.available() else f"none: {kernels.missing}"
    return {**machine(), "device": device, "threads": torch.get_num_threads(), "native_kernels": active}


class RunFolder:
    """run.toml, metrics.jsonl, checkpoints/step-N/, report.html."""

    def __init__(self, path: Path):
        """The folder need not exist yet."""
        self.path = user_path(path, RunError)

    @staticmethod
    def open(path: Path, config: dict[str, Any]) -> RunFolder:
        """Start a run, or take up the one that this config started. A run without a step makes way for another.

        Raises:
            RunError: the folder belongs to something else; the message names the first difference.
        """
        run = RunFolder(path)
        if run.belongs_to(config):
            return run
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        write_file(run.file, tomli_w.dumps({**config, "versions": versions(), "machine": {}}))
        return run

    def remember(self, *, machine: dict[str, Any] | None = None, precision: str = "") -> None:
        """Write down where a run is first trained, and in what precision; what is known already stays."""
        tables = self.tables()
        known = tables.get("machine", {})
        found = {**(machine or {}), **({"precision": precision} if precision else {}), **known}
        if found != known and not (known and machine):
            write_file(self.file, tomli_w.dumps({**tables, "machine": found}))

    def belongs_to(self, config: dict[str, Any]) -> bool:
        """Whether the folder holds the run of this config; False where there is none, or one that has not begun.

        Raises:
            RunError: it belongs to something else.
        """
        if self.file.is_file():
            difference = first_difference(self.config(), config)
            if difference is None:
                return True
            if not self.has_begun():
                return False
            key, before, now = difference
            raise RunError(
                f"{self.path}: belongs to a different run ({key} was {before!r} and is now {now!r}); name another --out"
            )
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: exists and is not a run folder; name another --out")
        if file := next((p for p in self.path.parents if p.exists() and not p.is_dir()), None):
            raise RunError(f"{self.path}: lies below {file}, which is a file; name another --out")
        if self.path.exists() and any(p for p in self.path.iterdir() if p.name not in EMPTY):
            raise RunError(f"{self.path}: exists and is not a run folder; name another --out")
        return False

    def has_begun(self) -> bool:
        """Whether anything was done that would be lost."""
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
        """What was asked for, the versions and the machine, and hashes of what was read."""
        return self.path / "run.toml"

    def tables(self) -> dict[str, Any]:
        """All of run.toml.

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
        """What run.toml says was asked for."""
        return {key: table for key, table in self.tables().items() if key not in NOT_CONFIG}

    def check(self, name: str, found: str, what: str) -> None:
        """Hold the hash of something that the run reads against the one it began with; it is written down until then.

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
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    def metrics(self) -> Iterator[dict[str, Any]]:
        """What was logged so far, up to the first line that a kill or a crash cut off."""
        for _, line in self._lines():
            if line is None:
                return
            yield line

    def _lines(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """(number, line), the line None where it is not one that a run wrote."""
        if not self.metrics_file.is_file():
            return
        with open(self.metrics_file, "rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = json.loads(raw.decode())
                except (ValueError, RecursionError):
                    line = None
                good = isinstance(line, dict) and is_line(line)
                yield number, line if good and raw.endswith(b"\n") else None

    def check_log(self) -> int:
        """The last step that was logged; steps rise by one from 1.

        Raises:
            RunError: a line is damaged, and others follow it; or steps are missing.
        """
        last, bad = 0, 0
        for number, line in self._lines():
            if line is None:
                bad = bad or number
                continue
            follows = line["step"] == last + 1 or (line["step"] == last and "diverged" in line)
            if bad or not follows:
                raise RunError(
                    f"{self.metrics_file}:{bad or number}: is not a line that a run wrote there; put the file back, or "
                    "remove the lines from there on: the run goes on from the checkpoint before"
                )
            last = line["step"]
        return last

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        with disk_errors(self.metrics_file), open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run will do again."""
        kept = [json.dumps(m) for m in self.metrics() if m.get("step", 0) <= step]
        write_file(self.metrics_file, "".join(line + "\n" for line in kept))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return step_folders(self.path / "checkpoints")

    def newest_good(self) -> Path | None:
        """The newest checkpoint whose files match their checksums and whose step was logged.

        A run killed between a checkpoint and its line goes on from the one before, and ends with the line that it would
        have had.

        Raises:
            RunError: there are checkpoints, and none can be gone on with; or the log is damaged.
        """
        last = self.check_log()
        found = self.checkpoints()
        for path in reversed(found):
            if (step_of(path) or 0) <= last and is_whole(path):
                return path
        if damaged := [p.name for p in found if not is_whole(p)]:
            raise RunError(
                f"{self.path / 'checkpoints'}: {', '.join(damaged)} is damaged, and no other can be gone on with; put "
                "it back, or remove the folder checkpoints and metrics.jsonl to begin again"
            )
        if ahead := [p for p in found if (step_of(p) or 0) > last + 1]:
            raise RunError(
                f"{self.metrics_file}: ends at step {last}, but {ahead[0].name} was written; put the log back, or "
                "remove the folder checkpoints to begin again"
            )
        return None

    def write_checkpoint(self, step: int, fill: Any) -> Path:
        """Have `fill(folder)` write a checkpoint; older ones but the last KEPT go once it is whole.

        Raises:
            Failure: the disk refuses; earlier checkpoints stay.
        """
        path = self.path / "checkpoints" / f"step-{step}"
        with new_folder(path) as folder:
            fill(folder)
            names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
            sums = {name: sha256(folder / name) for name in names}
            (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
            if self.metrics_file.is_file():  # a checkpoint whose line was lost would be passed over
                with open(self.metrics_file, "rb") as log:
                    os.fsync(log.fileno())
        for old in self.checkpoints()[:-KEPT]:
            shutil.rmtree(old)
        return path


def is_line(line: dict[str, Any]) -> bool:
    """Whether an object is a line of a log: numbers of a step, or why it diverged."""
    numbers = all(type(value) in (int, float) for name, value in line.items() if name != "diverged")
    said = "loss" in line or isinstance(line.get("diverged"), str)
    return numbers and said and "tokens" in line and type(line.get("step")) is int


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's files are those it was written with, of the step that its name says."""
    try:
        sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
        if not isinstance(sums, dict) or not {"config.json", "training.json", "optimizer.safetensors"} <= sums.keys():
            return False
        if not any(name.endswith(".safetensors") and name.startswith("model") for name in sums):
            return False
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in sums):
            return False
        if json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))["step"] != step_of(checkpoint):
            return False
        return all(sha256(checkpoint / name) == value for name, value in sums.items())
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return False


def first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, old, new) of the first place where two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            found = first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else name)
            if found:
                return found
        return None
    old, new = (list(x) if isinstance(x, tuple) else x for x in (old, new))
    return None if old == new else (key, old, new)
