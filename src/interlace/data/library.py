"""Real text that every machine has: the source code of Python's standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path, PurePath

from interlace.data.sources import Sources

NOT_SOURCE = {
    "encodings",
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "_bundled",
    "pydoc_data",
}


def is_library_source(path: PurePath) -> bool:
    """Return whether a file of the standard library counts as source; tests and generated encoding tables do not."""
    return path.suffix == ".py" and not NOT_SOURCE.intersection(path.parts)


def sources(data: Path | None) -> Sources:
    """Return the given text, or the running interpreter's standard library."""
    if data is not None:
        return Sources([data])
    return Sources([Path(sysconfig.get_path("stdlib"))], keep=is_library_source)
