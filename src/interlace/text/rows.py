"""Read rows and texts of files: UTF-8, gzip, zstd, JSON lines, Parquet; one block or row in memory at a time."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from interlace.base.errors import DataError, first_line

LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst")
TABLE = ".parquet"
ROWS = 256  # of a table that are in memory at a time
NEEDS = "needs pyarrow; install it with: pip install 'interlace[data]'"
ROW_BYTES = 16 << 20  # of a line of JSONL
BLOCK = 1 << 20  # bytes read at a time
KEPT = 2000  # characters of a line that is left out
Refused = Callable[[int, str, DataError], None]
HEAD = 1 << 16  # bytes in which a NUL says that a file is binary


def is_lines(path: Path) -> bool:
    """Whether a file holds one JSON value per line."""
    return path.name.removesuffix(".gz").removesuffix(".zst").endswith(LINES)


def is_table(path: Path) -> bool:
    """Whether a file is a table of Parquet."""
    return path.suffix == TABLE


def is_packed(path: Path) -> bool:
    """Whether a file is compressed."""
    return path.suffix in PACKED


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
    """A file's bytes, unpacked if its name ends in .gz or .zst.

    Raises:
        DataError: it cannot be read, or is not a whole file of that kind.
    """
    try:
        with open(path, "rb") as raw:
            if path.suffix == ".zst":
                yield _unpacked_zstd(path)
            else:
                yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_packed(path) else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is not a whole gzip file: {error}") from None
    except OSError as error:
        if path.suffix == ".zst" and error.strerror is None:
            raise DataError(f"{path}: is not a whole zstd file: {first_line(error)}") from None
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _unpacked_zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{path}: a zstd file {NEEDS}") from None
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BLOCK)


def table_groups(path: Path) -> list[tuple[int, int]]:
    """(bytes, rows) of each group of rows of a Parquet file.

    Raises:
        DataError: it is no such file.
    """
    with _table(path) as table:
        groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
        return [(group.total_byte_size, group.num_rows) for group in groups]


def table_rows(
    path: Path, groups: slice, first: int = 1, columns: Collection[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, row) of some groups of rows of a Parquet file.

    Args:
        first: the number of the first row.
        columns: those that are read where the file has one of them; else, all.

    Raises:
        DataError: it is no such file.
    """
    with _table(path) as table:
        wanted = range(table.metadata.num_row_groups)[groups]
        number, own = first, [name for name in table.schema_arrow.names if name in columns]
        for batch in table.iter_batches(ROWS, list(wanted), columns=own or None) if wanted else ():
            for row in batch.to_pylist():
                yield number, row
                number += 1


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: a Parquet file {NEEDS}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {first_line(error)}") from None


def line_starts(path: Path, every: int) -> list[tuple[int, int]]:
    """(byte, number of the line) of lines about `every` bytes apart, and the end; of a file that is not packed."""
    found, line, place, due = [(0, 1)], 1, 0, every
    with open_bytes(path) as file:
        while block := file.read(BLOCK):
            while place + len(block) > due:
                end = block.find(b"\n", max(0, due - place))
                if end < 0:
                    break
                found.append((place + end + 1, line + block.count(b"\n", 0, end + 1)))
                due = place + end + 1 + every
            line += block.count(b"\n")
            place += len(block)
    return [*(one for one in found if one[0] < place), (place, line)]


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


def json_lines(
    path: Path, start: int = 0, stop: int | None = None, first: int = 1, refused: Refused | None = None
) -> Iterator[tuple[int, str]]:
    """(number, line) of each line of a JSONL file that holds something.

    Args:
        start, stop: bytes to read, of a file that is not packed; `first` is the number of the first line.
        refused: told of a line that cannot be read, which is then left out.

    Raises:
        DataError: a line is longer than ROW_BYTES, or not UTF-8, and nobody is told.
    """
    number, place = first - 1, start
    with open_bytes(path) as file:
        if start:
            file.seek(start)
        while (stop is None or place < stop) and (raw := file.readline(ROW_BYTES + 1)):
            number += 1
            error = None
            if len(raw) > ROW_BYTES:
                error = DataError(f"{path}:{number}: is longer than {ROW_BYTES >> 20} MiB; split it into several rows")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as wrong:
                error = error or _not_utf8(path, place + wrong.start)
            place += len(raw)
            if error is not None:
                if refused is None:
                    raise error
                refused(number, raw[:KEPT].decode("utf-8", "replace"), error)
                while len(raw) > ROW_BYTES and not raw.endswith(b"\n"):  # the rest of a line that is too long
                    raw = file.readline(ROW_BYTES + 1)
                    place += len(raw)
                continue
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
