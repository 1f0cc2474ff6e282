"""The cage: run programs that a model wrote where they can do no harm.

Each program runs in a Python of its own, without site packages, in an empty folder, under the kernel's own locks. These
need no privilege and hold for root too. See `cage_child`.

- Seccomp lets through the system calls that programs need and no others: no other process, no signal to one, no socket,
  no queue, no new program.
- Landlock holds files: a program reads Python's library and nothing else, and writes files only in its folder, where it
  makes no folders.
- Memory, time, threads, output and the space of its files, with a name or without, are limited.

A program can still find out that a file exists elsewhere and how large it is, and it can hold locks on ranges of files
that it may read.

A program shares the interpreter that reports whether it came to its end. A program written to deceive can therefore say
that it passed; `programs` runs the tests of a program in another process. It cannot reach anything outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import secrets
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from interlace.base.errors import BackendUnavailable

CHILD = Path(__file__).with_name("cage_child.py")
NOT_CAGED = 97  # the child's exit status when a lock could not be closed
OUT_OF_MEMORY = 98
PREFIX = "interlace-cage-"
LOOK_SECONDS = 0.02
SHOWN = 300

Kind = Literal["passed", "failed", "ended early", "time", "memory", "output", "files", "threads", "killed"]
ANY_LEVEL = 99
# What Landlock holds from a level on, and the Linux that brought it. Below it, seccomp alone holds it.
LEVELS = (
    (3, "emptying files", "6.2"),
    (4, "TCP", "6.7"),
    (5, "requests to devices", "6.10"),
    (6, "signals and abstract sockets", "6.12"),
)


@dataclass(frozen=True)
class CageLimits:
    """The most that a program may take.

    Attributes:
        seconds: by the clock, and of one core.
        memory_bytes: address space.
        output_bytes: printed output; also the largest file.
        folder_bytes: the space of all its files, also of those that it holds open or mapped without a name.
        threads: how many at once.
    """

    seconds: float = 5.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20
    threads: int = 256


@dataclass(frozen=True)
class CageOutcome:
    """The result of a program.

    Attributes:
        kind: "passed" if it came to its end and raised nothing.
        why: the last line of its error.
        output: the start of what it printed.
    """

    kind: Kind
    why: str = ""
    output: str = ""
    seconds: float = 0.0


def run(
    source: str,
    limits: CageLimits | None = None,
    level: int | None = None,
    *,
    wires: Sequence[int] = (),
    folder: Path | None = None,
) -> CageOutcome:
    """Run a program and wait for it.

    Args:
        level: the highest level of Landlock to use, as on an older kernel: 1 is Linux 5.13, 3 is 6.2, 4 is 6.7.
        wires: descriptors that it keeps; they are closed here.
        folder: where it writes, if not in one of its own.

    Raises:
        BackendUnavailable: this system has no such locks; nothing was run.
    """
    limits = limits or CageLimits()
    _tidy()
    own = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        return _run(source, limits, own, folder or own / "inside", wires, ANY_LEVEL if level is None else level)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _run(source: str, limits: CageLimits, folder: Path, inside: Path, wires: Sequence[int], level: int) -> CageOutcome:
    inside.mkdir(exist_ok=True)
    (folder / "program").write_bytes(source.encode("utf-8", "replace"))
    token = secrets.token_hex(16)
    told, tell = os.pipe()
    settings = [str(limits.memory_bytes), str(max(1, round(limits.seconds + 0.5))), str(limits.output_bytes)]
    began = time.monotonic()
    with open(folder / "output", "wb") as output, open(folder / "program", "rb") as program:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CHILD), str(tell), token, *settings, sys.base_prefix, str(level)],
            stdin=program,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=inside,
            env={"PYTHONHASHSEED": "0", "PATH": "", "HOME": str(inside), "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
            pass_fds=(tell, *wires),
            start_new_session=True,
        )
    for mine in (tell, *wires):
        os.close(mine)
    try:
        over = _watch(process, limits, inside, began)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    with os.fdopen(told, "rb") as pipe:
        said = pipe.read(1 << 16).decode("utf-8", "replace")
    with open(folder / "output", "rb") as file:
        printed = file.read(1 << 14).decode("utf-8", "replace")
    found = _judge(process.returncode, over, said, token, printed)
    return CageOutcome(found[0], found[1][:SHOWN], printed[:SHOWN], time.monotonic() - began)


@cache
def _tidy() -> None:
    """Remove what killed processes left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if not owner.isdecimal() or not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(RecursionError):
                shutil.rmtree(folder, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes], limits: CageLimits, inside: Path, began: float) -> Kind | None:
    """Wait until the program ends or passes a limit."""
    ended = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    folder = os.path.realpath(inside)
    try:
        while process.poll() is None:
            left = limits.seconds - (time.monotonic() - began)
            if left <= 0:
                return "time"
            tasks = _entries(f"/proc/{process.pid}/task")
            if len(tasks) > limits.threads:
                return "threads"
            if _occupied(folder) + _nameless(folder, tasks, limits.output_bytes) > limits.folder_bytes:
                return "files"
            if ended is not None:
                select.select([ended], [], [], min(left, LOOK_SECONDS))
            else:
                time.sleep(min(left, LOOK_SECONDS))
    finally:
        if ended is not None:
            os.close(ended)
    return "files" if _occupied(folder) > limits.folder_bytes else None


def _entries(folder: str) -> list[str]:
    """Return the paths in a folder; none if the folder is gone."""
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []


def _bytes(info: os.stat_result) -> int:
    """Return the bytes that a file takes: blocks past its end count, and so do holes before it."""
    return max(info.st_size, 512 * info.st_blocks)


def _occupied(folder: str) -> int:
    """Return the bytes that a folder's files take, with a little for each of their names."""
    total = 0
    for path in _entries(folder):
        total += 4096
        with contextlib.suppress(OSError):  # gone while we looked
            total += _bytes(os.stat(path, follow_symlinks=False))
    return total


def _nameless(folder: str, tasks: list[str], largest: int) -> int:
    """Return the bytes of files of a folder that have lost their name and are still open or mapped.

    The size of a mapped file cannot be seen, so it counts as one of the largest.
    """
    found: dict[int, int] = {}
    start, end = os.fsencode(folder), b" (deleted)\n"
    for task in tasks:  # threads share all of it, but of one that has ended, also the first, nothing is seen
        mapped = False
        with contextlib.suppress(OSError), open(f"{task}/maps", "rb") as maps:
            for line in maps:
                mapped = True
                fields = line.split(None, 5)
                if len(fields) == 6 and fields[5].startswith(start) and fields[5].endswith(end):
                    found[int(fields[4])] = largest
        for path in _entries(f"{task}/fd"):
            with contextlib.suppress(OSError):
                info = os.stat(path)
                if stat.S_ISREG(info.st_mode) and not info.st_nlink:
                    found[info.st_ino] = _bytes(info)
        if mapped:
            break
    return sum(found.values())


def _judge(status: int, over: Kind | None, said: str, token: str, printed: str) -> tuple[Kind, str]:
    locked, _, told = said.partition("\n")
    if locked != "locked" and status == NOT_CAGED:  # a program may end with that status too, but it says "locked" first
        raise BackendUnavailable(
            f"verify: programs cannot be locked in on this system ({locked or platform.system()}); "
            "they need Linux 5.13 or newer with Landlock and seccomp, on x86_64 or aarch64"
        )
    lines = told.splitlines()
    if over is not None:
        return over, ""
    if status == OUT_OF_MEMORY:
        return "memory", ""
    if status == -signal.SIGXCPU:
        return "time", ""
    if status == -signal.SIGXFSZ or (lines and "File too large" in lines[-1]):
        return "output", ""
    if status < 0:
        known = {s.value: s.name for s in signal.Signals}
        return "killed", f"by signal {known.get(-status, -status)}"
    if lines and lines[-1] == f"end {token}" and not status:
        return "passed", ""
    if lines and lines[-1].startswith("error "):
        return "failed", lines[-1].removeprefix("error ")
    return "ended early", f"status {status}"


@cache
def available(most: int | None = None) -> str:
    """Return why programs cannot be caged here, by Landlock up to the level `most`; "" if they can."""
    try:
        found = run("", level=most)
    except BackendUnavailable as error:
        return str(error)
    return "" if found.kind == "passed" else f"verify: an empty program did not pass: {found}"


def level(most: int | None = None) -> int:
    """Return the level of Landlock that `run` uses here, up to `most`; 0 if there is none."""
    if sys.platform != "linux":
        return 0
    found = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(0, min(found, ANY_LEVEL if most is None else most))


def describe(most: int | None = None) -> str:
    """Return whether the cage works here, at which level, and what one lock alone holds."""
    held = level(most)
    if why := available(most):
        return why
    missing = [f"{what} (Linux {linux})" for first, what, linux in LEVELS if held < first]
    alone = f"; seccomp alone holds {', '.join(missing)}" if missing else ""
    return f"closes, Landlock's level {held}{alone}"
