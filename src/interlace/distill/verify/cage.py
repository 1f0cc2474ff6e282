"""Programs that a model wrote, run where they can do no harm.

Each runs in a Python of its own, without site packages, in an empty folder, under the kernel's own locks, which need no
privilege and hold for root too: Landlock (files: it reads Python's library and nothing else, and writes files only in
its folder, where it makes no folders), seccomp (no other process, no signal to others, no socket, no new program), and
limits on memory, time, file size and output. See `cage_child`. That a file exists elsewhere, and how large it is, a
program can find out.

A program shares the interpreter that reports whether it came to its end, so one that is written to deceive can say that
it passed; `programs` has the tests of one program in another. What it cannot do is reach anything outside.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import select
import shutil
import signal
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

Kind = Literal["passed", "failed", "ended early", "time", "memory", "output", "files", "killed"]


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        seconds: by the clock, and of one core.
        memory_bytes: address space.
        output_bytes: printed; also the largest file.
        folder_bytes: in its folder, all in all.
    """

    seconds: float = 5.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20
    folder_bytes: int = 16 << 20


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        kind: "passed" if it came to its end and raised nothing.
        why: the last line of its error.
        output: the start of what it printed.
    """

    kind: Kind
    why: str = ""
    output: str = ""
    seconds: float = 0.0


def run(source: str, limits: Limits | None = None, *, wires: Sequence[int] = (), folder: Path | None = None) -> Outcome:
    """Run a program and wait for it.

    Args:
        wires: descriptors that it keeps; they are closed here.
        folder: where it writes, if not in one of its own.

    Raises:
        BackendUnavailable: this system has no such locks; nothing was run.
    """
    limits = limits or Limits()
    _tidy()
    own = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        return _run(source, limits, own, folder or own / "inside", wires)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _run(source: str, limits: Limits, folder: Path, inside: Path, wires: Sequence[int]) -> Outcome:
    inside.mkdir(exist_ok=True)
    (folder / "program").write_bytes(source.encode("utf-8", "replace"))
    token = secrets.token_hex(16)
    told, tell = os.pipe()
    settings = [str(limits.memory_bytes), str(max(1, round(limits.seconds + 0.5))), str(limits.output_bytes)]
    began = time.monotonic()
    with open(folder / "output", "wb") as output, open(folder / "program", "rb") as program:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CHILD), str(tell), token, *settings, sys.base_prefix],
            stdin=program,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=inside,
            env={"PYTHONHASHSEED": "0", "PATH": "", "HOME": str(inside), "LANG": "C.UTF-8"},
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
    return Outcome(found[0], found[1][:SHOWN], printed[:SHOWN], time.monotonic() - began)


@cache
def _tidy() -> None:
    """Remove what processes left behind that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if not owner.isdecimal() or not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(RecursionError):
                shutil.rmtree(folder, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes], limits: Limits, inside: Path, began: float) -> Kind | None:
    """Wait for the end, or for a limit to be passed."""
    ended = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    try:
        while process.poll() is None:
            left = limits.seconds - (time.monotonic() - began)
            if left <= 0:
                return "time"
            if _size(inside) > limits.folder_bytes:
                return "files"
            if ended is not None:
                select.select([ended], [], [], min(left, LOOK_SECONDS))
            else:
                time.sleep(min(left, LOOK_SECONDS))
    finally:
        if ended is not None:
            os.close(ended)
    return None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, and a little for each of their names."""
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += 4096
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # gone while we looked
            continue
    return total


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
def available() -> str:
    """Why programs cannot be locked in here; "" if they can."""
    try:
        found = run("")
    except BackendUnavailable as error:
        return str(error)
    return "" if found.kind == "passed" else f"verify: an empty program did not pass: {found}"
