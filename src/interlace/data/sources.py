"""Text as people keep it: files, folders, JSONL, gzip."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from interlace.base.errors import DataError
from interlace.base.text import clean_values
from interlace.data.chat import Messages, check_messages

LINES = (".jsonl", ".ndjson")
MESSAGES = "messages"  # the key that holds a conversation in JSONL
PART_BYTES = 16_384  # a lone text file is cut into documents of about this size, at line ends


@dataclass(frozen=True)
class Document:
    """One text and the name by which it is split: a path below its source, with a line or part number.

    Attributes:
        messages: the turns, where the text is a conversation that a chat template has yet to write.
        tools: descriptions of the tools that its assistant may call.
    """

    name: str
    text: str = ""
    messages: Messages | None = None
    tools: Sequence[Any] | None = None


@dataclass
class Sources:
    """The documents of some files and folders, in a fixed order; can be read more than once.

    Attributes:
        paths: files and folders. Folders are walked; what in them is not text is skipped and noted.
        text_field: the key that holds the text in JSONL.
        keep: whether a file of a folder is wanted, given its path below the folder.
        cut: whether a text file that stands alone is cut into parts, each a document.
        skipped: reason by path, filled while reading.
    """

    paths: Sequence[Path]
    text_field: str = "text"
    keep: Callable[[PurePath], bool] = lambda _: True
    cut: bool = True
    skipped: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Document]:
        """Yield documents.

        Raises:
            DataError: a source is missing, empty, binary, not UTF-8, or not what its ending says.
        """
        for path in self.paths:
            if path.is_dir():
                yield from self._folder(path)
            elif path.is_file():
                yield from self._file(path, path.name, alone=True)
            else:
                raise DataError(f"{path}: no such file or folder")

    def _folder(self, folder: Path) -> Iterator[Document]:
        found = False
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if hidden or not self.keep(name) or not path.is_file():
                continue
            try:
                for document in self._file(path, name.as_posix(), alone=False):
                    found = True
                    yield document
            except DataError as error:
                if is_lines(path):
                    raise
                self.skipped[name.as_posix()] = str(error).removeprefix(f"{path}: ")
        if not found:
            raise DataError(f"{folder}: holds no text file that is UTF-8 and not empty")

    def _file(self, path: Path, name: str, alone: bool) -> Iterator[Document]:
        text = read_text(path)
        if is_lines(path):
            yield from self._lines(path, name, text)
        elif alone and self.cut and len(text) > 2 * PART_BYTES:
            yield from (Document(f"{name}#{i:05}", part) for i, part in enumerate(parts(text)))
        else:
            yield Document(name, text)

    def _lines(self, path: Path, name: str, text: str) -> Iterator[Document]:
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = clean_values(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: is not JSON: {error}") from None
            if isinstance(row, dict) and MESSAGES in row and self.text_field not in row:
                where = f"{path}:{number}"
                if not isinstance(tools := row.get("tools"), list | None):
                    raise DataError(f"{where}: tools must be a list, got {json.dumps(tools)[:100]}")
                yield Document(f"{name}:{number}", messages=check_messages(row[MESSAGES], where), tools=tools)
                continue
            if not isinstance(row, dict) or not isinstance(row.get(self.text_field), str):
                keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise DataError(f"{path}:{number}: has no text under '{self.text_field}' (found: {keys}); set --field")
            if row[self.text_field]:
                yield Document(f"{name}:{number}", row[self.text_field])


def is_lines(path: Path) -> bool:
    """Whether a file holds one JSON value per line."""
    return path.name.removesuffix(".gz").endswith(LINES)


def read_text(path: Path) -> str:
    """The whole text of a file, unpacked if its name ends in .gz.

    Raises:
        DataError: it is empty, binary, or not UTF-8.
    """
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: is not a whole gzip file: {error}") from None
    if not raw.strip():
        raise DataError(f"{path}: is empty")
    if b"\0" in raw[: 1 << 16]:
        raise DataError(f"{path}: is binary, not text")
    try:
        return raw.decode("utf-8-sig")  # some editors begin files with a mark of order
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start}); convert it, for example with iconv") from None


def parts(text: str) -> Iterator[str]:
    """A long text cut at line ends into pieces of about PART_BYTES characters."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start + PART_BYTES) + 1
        stop = stop if stop and len(text) - stop > PART_BYTES // 2 else len(text)
        yield text[start:stop]
        start = stop


def split_point(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def held_out(names: Sequence[str], share: float) -> set[str]:
    """The documents to hold out: those whose name's hash falls below `share`, at least one.

    Raises:
        DataError: fewer than two documents, so that none can be held out.
    """
    if len(names) < 2:
        raise DataError(f"held_out: {len(names)} document cannot be split; give more text, or several files")
    chosen = {name for name in names if split_point(name) < share}
    if not chosen:
        chosen = {min(names, key=split_point)}
    return chosen if len(chosen) < len(names) else chosen - {max(names, key=split_point)}
