"""The run folder: what was asked for, what happened, and checkpoints that are whole or absent."""

from __future__ import annotations

import json
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
from interlace.base.files import disk_errors, new_folder, sha256, write_file

SUMS = "checksums.json"
KEPT = 2  # checkpoints


def versions() -> dict[str, str]:
    """What a run's numbers depend on beside its config."""
    return {"interlace": interlace.__version__, "torch": torch.__version__, "python": platform.python_version()}


class RunFolder:
    """run.toml, metrics.jsonl, checkpoints/step-N/, report.html."""

    def __init__(self, path: Path):
        """The folder need not exist yet."""
        self.path = path

    @staticmethod
    def open(path: Path, config: dict[str, Any]) -> RunFolder:
        """Start a run, or take up the one that this config started.

        Raises:
            RunError: the folder belongs to something else; the message names the first difference.
        """
        run = RunFolder(path)
        file = path / "run.toml"
        if file.is_file():
            old = run.config()
            difference = first_difference(old, config)
            if difference:
                key, before, now = difference
                raise RunError(
                    f"{path}: belongs to a different run ({key} was {before!r} and is now {now!r}); name another --out"
                )
        elif path.exists() and (not path.is_dir() or any(p for p in path.iterdir() if p.name != "data")):
            raise RunError(f"{path}: exists and is not a run folder; name another --out")
        else:
            with disk_errors(path):
                path.mkdir(parents=True, exist_ok=True)
            write_file(file, tomli_w.dumps({**config, "versions": versions()}))
        return run

    def config(self) -> dict[str, Any]:
        """What run.toml says, without the versions."""
        try:
            data = tomllib.loads((self.path / "run.toml").read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise RunError(f"{self.path / 'run.toml'}: is not TOML: {error}") from None
        data.pop("versions", None)
        return data

    @property
    def metrics_file(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    def metrics(self) -> Iterator[dict[str, Any]]:
        """What was logged so far; a last line cut off by a kill is left out."""
        if self.metrics_file.is_file():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    return

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
        found = [p for p in (self.path / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdigit()]
        return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))

    def newest_good(self) -> Path | None:
        """The newest checkpoint whose files match their checksums and whose step was logged: a run killed between a
        checkpoint and its line goes on from the one before, and ends with the line that it would have had.
        """
        logged = {m["step"] for m in self.metrics() if "step" in m}
        found = [p for p in self.checkpoints() if not logged or int(p.name.removeprefix("step-")) in logged]
        return next((p for p in reversed(found) if is_whole(p)), None)

    def write_checkpoint(self, step: int, fill: Any) -> Path:
        """Have `fill(folder)` write a checkpoint; older ones but the last KEPT go once it is whole.

        Raises:
            Failure: the disk refuses; earlier checkpoints stay.
        """
        path = self.path / "checkpoints" / f"step-{step}"
        with new_folder(path) as folder:
            fill(folder)
            sums = {p.name: sha256(p) for p in sorted(folder.iterdir())}
            (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
        for old in self.checkpoints()[:-KEPT]:
            shutil.rmtree(old)
        return path


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's files are those it was written with."""
    try:
        sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
        return all(sha256(checkpoint / name) == value for name, value in sums.items())
    except (OSError, ValueError):
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
