"""A file of JSON, one row a line, that work which may be killed appends to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from interlace.base.errors import InterlaceError
from interlace.base.files import disk_errors


class Lines:
    """A file that rows are appended to; a line that was cut off is removed."""

    def __init__(self, path: Path):
        """path: which may be there already."""
        self._path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes() if path.is_file() else b""
            self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
            self._file.truncate(raw.rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        with disk_errors(self._path):
            self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def whole_lines(
    path: Path, good: Callable[[Any], bool], kind: type[InterlaceError], fault: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, up to a line that was cut off; none if there is no file.

    Args:
        path: of the file.
        good: whether a row is one that was written; KeyError and TypeError mean that it is not.
        kind: of the error.
        fault: what is said of a line that is damaged, after the file's path and the line's number.

    Raises:
        InterlaceError: of that kind; a line is damaged.
    """
    if not path.is_file():
        return
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                row = json.loads(raw)
                fine = good(row)
            except (ValueError, KeyError, TypeError):
                fine = False
            if not fine:
                raise kind(f"{path}:{number}: {fault}")
            yield row
