"""Write files so that a kill does no harm: new files appear whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interlace.base.errors import DataError, Failure, InterlaceError

PARTIAL = ".partial"


def sync(path: Path) -> None:
    """Ask the disk to keep what was written to this file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def user_path(text: str | Path, kind: type[InterlaceError] = DataError) -> Path:
    """Return a path as people write it, with `~` as their home; it need not exist.

    Raises:
        kind: there is no such user, or the system knows no such path.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError:
        raise kind(f"{text!s:.100}: there is no such user; write the path out") from None
    except (OSError, ValueError) as error:
        raise kind(f"{text!s:.100}: cannot be used: {getattr(error, 'strerror', None) or error}") from None
    return path


def check_new(out: Path, kind: type[InterlaceError] = DataError) -> None:
    """Raise `kind` unless a folder to be made is absent or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise kind(f"{out}: exists and is not an empty folder; name another --out, or remove it")


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Raise the operating system's refusal to write as a plain sentence."""
    try:
        yield
    except OSError as error:
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise Failure(f"{what}: cannot be written: {reason}; what was there before is untouched") from error


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step."""
    raw = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")  # another may write it too
    with disk_errors(path):
        try:
            with open(partial, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(path: Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Give a folder to fill, which takes its name only when it is complete.

    If the name exists already, new files replace those of their names; then old files that match a pattern of `stale`
    are removed.
    """
    partial = path.with_name(path.name + PARTIAL)
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            yield partial
            for file in sorted(partial.rglob("*")):
                sync(file)
            sync(partial)
            if path.exists():
                _replace_files(partial, path, stale)
            else:
                os.rename(partial, path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _replace_files(partial: Path, path: Path, stale: Sequence[str]) -> None:
    names = [file.relative_to(partial) for file in sorted(partial.rglob("*"))]
    for name in names:  # before the first is replaced
        if os.path.lexists(path / name) and (partial / name).is_dir() != (path / name).is_dir():
            kind, due = ("folder", "file") if (path / name).is_dir() else ("file", "folder")
            raise Failure(f"{path / name}: is a {kind} where a {due} is due; move it; nothing was replaced")
    for name in names:
        if (partial / name).is_dir():
            (path / name).mkdir(exist_ok=True)
        else:
            os.replace(partial / name, path / name)
    shutil.rmtree(partial)
    for pattern in stale:
        for old in sorted(path.glob(pattern)):
            if old.relative_to(path) not in names and not old.is_dir():
                old.unlink()


def sha256(path: Path) -> str:
    """Return a file's hash in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, what: str) -> Any:
    """The JSON value in a file; `what` names it in errors.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin files with a mark of order
    except FileNotFoundError:
        raise DataError(f"{path}: {what} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: {what} cannot be read: {error}") from None
