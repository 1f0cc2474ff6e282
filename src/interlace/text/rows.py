"""Read rows and texts of files: UTF-8, gzip, JSON lines, with one block or line in memory at a time."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from interlace.base.errors import DataError

LINES = (".jsonl", ".ndjson")
ROW_BYTES = 16 << 20  # of a line of JSONL
BLOCK = 1 << 20  # bytes read at a time
HEAD = 1 << 16  # bytes in which a NUL says that a file is binary


def is_lines(path: Path) -> bool:
    """Whether a file holds one JSON value per line."""
    return path.name.removesuffix(".gz").endswith(LINES)


def is_packed(path: Path) -> bool:
    """Whether a file is compressed."""
    return path.suffix == ".gz"


def decoded(raw: bytes, path: Path) -> str:
    """The whole text of a small file.

    Raises:
        DataError: it is empty, binary, or not UTF-8.
    """
    if not raw.strip():
        raise DataError(f"{path}: is empty")
    if b"\0" in raw[:HEAD]:
        raise DataError(f"{path}: is binary, not text")
    try:
        return raw.decode("utf-8-sig")  # some editors begin files with a mark of order
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.start) from None


def _not_utf8(path: Path, byte: int) -> DataError:
    return DataError(f"{path}: is not UTF-8 (byte {byte}); convert it, for example with iconv")


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked if its name ends in .gz.

    Raises:
        DataError: it cannot be read, or is not a whole gzip file.
    """
    try:
        with open(path, "rb") as raw:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_packed(path) else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is not a whole gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def text_blocks(path: Path) -> Iterator[str]:
    """The text of a file in blocks of about BLOCK characters.

    Raises:
        DataError: it is binary, or not UTF-8; what came before that was given already.
    """
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(path) as file:
        while True:
            raw = file.read(BLOCK)
            if not place and b"\0" in raw[:HEAD]:
                raise DataError(f"{path}: is binary, not text")
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, place - held + error.start) from None
            if text:
                yield text if place else text.removeprefix("\ufeff")
            if not raw:
                return
            place += len(raw)


def json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of each line of a JSONL file that holds something.

    Raises:
        DataError: a line is longer than ROW_BYTES, or not UTF-8.
    """
    number, place = 0, 0
    with open_bytes(path) as file:
        while raw := file.readline(ROW_BYTES + 1):
            number += 1
            if len(raw) > ROW_BYTES:
                raise DataError(f"{path}:{number}: is longer than {ROW_BYTES >> 20} MiB; split it into several rows")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, place + error.start) from None
            place += len(raw)
            if line.strip():
                yield number, line


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, also packed by gzip, one line in memory at a time.

    Raises:
        DataError: the file is missing, or a line is too long or no object; the message names it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    for number, line in json_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: is a {type(row).__name__}, not an object with named columns")
        yield row
