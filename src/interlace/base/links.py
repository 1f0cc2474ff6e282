"""Check files of a folder that strangers wrote: each must be a plain file, and no link that leaves the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from interlace.base.errors import DataError, InterlaceError


def inside(folder: Path, path: Path, kind: type[InterlaceError] = DataError) -> Path:
    """A file of the folder, refused if it is a link to somewhere else.

    The hub's own cache links from a snapshot to the blobs beside it, which is allowed.

    Raises:
        kind: the file's real place is outside, or it is a link to itself.
    """
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # RuntimeError before Python 3.13
        raise kind(f"{path}: is a link that leads back to itself; put the file itself here") from None
    blobs = home.parent.parent / "blobs"  # models--OWNER--NAME/snapshots/REVISION beside models--OWNER--NAME/blobs
    cached = home.parent.name == "snapshots" and real.is_relative_to(blobs)
    if not real.is_relative_to(home) and not cached:
        raise kind(f"{path}: is a link that leaves its folder, to {real}; refused, copy the file here instead")
    return path


def regular_size(path: Path, kind: type[InterlaceError] = DataError) -> int:
    """Bytes of a file that can be read from beginning to end, which a pipe or a device cannot.

    Raises:
        kind: it is missing, or no regular file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise kind(f"{path}: missing") from None
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise kind(f"{path}: is not a regular file; put the file itself here")
    return status.st_size


def alongside(folder: Path, patterns: Sequence[str], kind: type[InterlaceError] = DataError) -> dict[str, Path]:
    """The files that a folder has of these names, by their path below it.

    Raises:
        kind: one is a link that leaves the folder, or no regular file.
    """
    found = {}
    for pattern in patterns:
        named = [folder / pattern] if "*" not in pattern else sorted(folder.glob(pattern))
        for path in (p for p in named if os.path.lexists(p)):
            regular_size(inside(folder, path, kind), kind)
            found[path.relative_to(folder).as_posix()] = path
    return found
