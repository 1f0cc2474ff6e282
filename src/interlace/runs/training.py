"""A training run in its folder: run.toml, metrics.jsonl, checkpoints/step-N/, report.html."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from interlace.base.errors import RunError
from interlace.base.files import disk_errors, sync, write_file
from interlace.runs.checkpoints import (
    checkpoint_path,
    drop_old,
    is_whole,
    newest_whole,
    step_folders,
    step_of,
    write_checkpoint,
    write_sums,
)
from interlace.runs.folder import RunFolder

LOG = logging.getLogger("interlace")
WORDS = ("diverged", "skipped")  # of a line of metrics.jsonl: why training ended, why a step changed no weight


class TrainingRun(RunFolder):
    """A run folder with a log and checkpoints, which survives being killed at any moment."""

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Return the rows logged so far, up to the first line that a kill or a crash cut off."""
        for _, line in self._lines():
            if line is None:
                return
            yield line

    def _lines(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield (number, row) of each line; the row is None if a run did not write it."""
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
        """Return the last step that was logged; steps rise by one from 1.

        Raises:
            RunError: a line is damaged and others follow it, or steps are missing.
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
        """Drop lines and checkpoints of steps that a resumed run will do again."""
        for later in [p for p in self.checkpoints() if (step_of(p) or 0) > step]:
            shutil.rmtree(later)
        kept = [json.dumps(m) for m in self.metrics() if m.get("step", 0) <= step]
        write_file(self.metrics_file, "".join(line + "\n" for line in kept))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return step_folders(self.path)

    def newest_good(self) -> Path | None:
        """Return the newest checkpoint whose files match their checksums and whose step was logged.

        A run that was killed between writing a checkpoint and logging its step resumes from the checkpoint before. It
        ends with the same line.

        Raises:
            RunError: there are checkpoints, and none can be resumed from; or the log is damaged.
        """
        last = self.check_log()
        found = self.checkpoints()
        if newest := newest_whole([p for p in found if (step_of(p) or 0) <= last]):
            if later := [p.name for p in found if (step_of(p) or 0) > (step_of(newest) or 0) and not is_whole(p)]:
                LOG.warning(
                    "%s: %s is damaged (a file is missing, or its checksum differs); going on from %s",
                    self.path / "checkpoints",
                    ", ".join(later),
                    newest.name,
                )
            return newest
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

    def write_checkpoint(self, step: int, fill: Callable[[Path], None]) -> Path:
        """Write a checkpoint; see `checkpoints.write_checkpoint`.

        The line of its step must be on the disk before, else the checkpoint would be ignored.
        """

        return write_checkpoint(self.path, step, lambda folder: self._synced(folder, fill))

    def _synced(self, folder: Path, fill: Callable[[Path], None]) -> None:
        fill(folder)
        if self.metrics_file.is_file():
            sync(self.metrics_file)

    def fill_checkpoint(self, folder: Path, fill: Callable[[Path], None]) -> None:
        """Complete a checkpoint that others have begun to write, before it takes its name."""
        self._synced(folder, fill)
        write_sums(folder)

    def checkpoint_path(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return checkpoint_path(self.path, step)

    def drop_old_checkpoints(self) -> None:
        """Remove all checkpoints but the last ones."""
        drop_old(self.path)


def is_line(line: dict[str, Any]) -> bool:
    """Return whether an object is a line of a log: numbers of a step, or why it diverged."""
    numbers = all(type(value) in (int, float) for name, value in line.items() if name not in WORDS)
    said = "loss" in line or any(isinstance(line.get(name), str) for name in WORDS)
    return numbers and said and "tokens" in line and type(line.get("step")) is int
