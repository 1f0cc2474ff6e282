"""One process at a time in a folder: a second one is refused and told who holds it; a dead one is replaced.

The operating system's own lock (flock) decides: it is freed when its holder ends, however it ends. The contents of the
file serve the message alone. On network file systems without such locks, the file itself is the lock: a holder on this
host is looked for, and a holder on another host is believed to be alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interlace.base.errors import RunError
from interlace.base.files import disk_errors

INSIDE = "run.lock"  # of a run folder
WITHOUT = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system without locks
POLL_SECONDS = 0.1


def beside(folder: Path) -> Path:
    """Return the path of the lock for a folder that does not exist yet."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def hold_folder(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a run folder. It is made if it is missing, and removed again at the end if it is still empty.

    Raises:
        RunError: another process works in it.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: exists and is not a run folder; name another --out")
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder / INSIDE, folder, wait_seconds):
            yield
    finally:
        for path in made:
            try:
                path.rmdir()
            except OSError:
                break


@contextmanager
def hold(place: Path, what: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `place`, which stands for `what`.

    Args:
        wait_seconds: for a holder that is about to end.

    Raises:
        RunError: another process holds it.
        Failure: the disk refuses.
    """
    until = time.monotonic() + wait_seconds
    with disk_errors(what):
        place.parent.mkdir(parents=True, exist_ok=True)
        while (handle := _take(place, what, last=time.monotonic() >= until)) is None:
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink()
        os.close(handle)


def _take(place: Path, what: Path, last: bool) -> int | None:
    """Open and lock the file; return None if another process holds it, or if it was removed meanwhile."""
    handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if last:
                raise _refusal(what, _holder(handle)) from None
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in WITHOUT:
                raise
            holder = _holder(handle)
            if holder and _lives(holder):
                raise _refusal(what, holder, place) from None
        if not _is_at(handle, place):
            os.close(handle)
            return None
        now = {"pid": os.getpid(), "host": platform.node(), "born": born(os.getpid()), "begun": time.strftime("%F %T")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(now).encode(), 0)
        return handle
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise


def _is_at(handle: int, place: Path) -> bool:
    """Return whether the open file still has its name: its last holder may have removed it."""
    try:
        return os.fstat(handle).st_ino == place.stat().st_ino
    except FileNotFoundError:
        return False


def _holder(handle: int) -> dict[str, Any]:
    """Return what the holder wrote into the file; it may not have written yet."""
    for _ in range(10):
        try:
            found = json.loads(os.pread(handle, 1 << 12, 0))
            return found if isinstance(found, dict) else {}
        except ValueError:
            time.sleep(0.02)
    return {}


def _refusal(what: Path, holder: dict[str, Any], place: Path | None = None) -> RunError:
    who = f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "another process"
    since = f" since {holder['begun']}" if "begun" in holder else ""
    remedy = f"; if that process has ended, remove {place}" if place is not None else ""
    return RunError(f"{what}: {who} works in it{since}; wait for it, end it, or name another --out{remedy}")


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a holder is alive, as far as this host can tell."""
    if holder.get("host") != platform.node() or not isinstance(holder.get("pid"), int):
        return True
    return born(holder["pid"]) == holder.get("born") != ""


def born(pid: int) -> str:
    """Return when a process of this machine was started, "" if there is none.

    It tells the process from a later one with the same number.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "alive" if not os.path.isdir("/proc/self") else ""
