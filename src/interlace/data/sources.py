"""Read text as people store it: files, folders, JSONL, gzip."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from interlace.base.errors import DataError
from interlace.base.files import user_path
from interlace.base.text import clean, clean_values
from interlace.data.chat import Messages, check_messages
from interlace.text.rows import decoded, is_lines, is_packed, json_lines, text_blocks

MESSAGES = "messages"  # the key that holds a conversation in JSONL
PART_BYTES = 16_384  # a lone text file is cut into documents of about this size, at line ends
LONGEST = 1 << 20  # characters of a document: a longer text is cut where a paragraph, a line or a word ends
TURNS = 8 << 20  # characters of a conversation's row, which cannot be cut


@dataclass(frozen=True)
class Document:
    """One text and the name by which it is split: a path below its source, with a line or part number.

    Attributes:
        messages: the turns, where the text is a conversation that a chat template has yet to write.
        tools: descriptions of the tools that its assistant may call.
        size: characters of the row that a conversation was read from, all its keys included.
    """

    name: str
    text: str = ""
    messages: Messages | None = None
    tools: Sequence[Any] | None = None
    size: int = 0


@dataclass
class Sources:
    """The documents of some files and folders, in a fixed order; can be read more than once.

    Attributes:
        paths: files and folders. Folders are walked; what in them is not text is skipped and noted.
        text_field: the key that holds the text in JSONL.
        keep: whether a file of a folder is wanted, given its path below the folder.
        cut: whether a text file that stands alone is cut into parts, each a document.
        skipped: reason by path, filled while reading.

    A document has at most LONGEST characters, and no more than about two are in memory at once. Where files of two
    sources have the same name, the later one's is told apart by the number of its source: book.txt and book.txt@2.
    """

    paths: Sequence[Path]
    text_field: str = "text"
    keep: Callable[[PurePath], bool] = lambda _: True
    cut: bool = True
    skipped: dict[str, str] = field(default_factory=dict)
    _checked: set[tuple[str, int, int]] = field(default_factory=set)
    _renamed: dict[Path, str] | None = None

    def __iter__(self) -> Iterator[Document]:
        """Yield documents.

        Raises:
            DataError: a source is missing, empty, binary, not UTF-8, or not what its ending says.
        """
        paths = [user_path(path) for path in self.paths]
        if self._renamed is None:
            self._renamed = _same_names([self.files(path) for path in paths]) if len(paths) > 1 else {}
        for path in paths:
            if path.is_dir():
                yield from self._folder(path)
            elif path.is_file():
                yield from self._file(path, self._renamed.get(path, path.name), alone=True)
            else:
                raise DataError(f"{path}: no such file or folder")

    def files(self, source: Path) -> Iterator[tuple[Path, str]]:
        """Return the wanted files of a source, and their names below it."""
        if not source.is_dir():
            yield source, source.name
            return
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if not hidden and self.keep(name) and path.is_file():
                yield path, name.as_posix()

    def _folder(self, folder: Path) -> Iterator[Document]:
        found, renamed = False, self._renamed or {}
        for path, own in self.files(folder):
            name = renamed.get(path, own)
            try:
                for document in self._file(path, name, alone=False):
                    found = True
                    yield document
            except DataError as error:
                if is_lines(path):
                    raise
                self.skipped[name] = str(error).removeprefix(f"{path}: ")
        if not found:
            raise DataError(f"{folder}: holds no text file that is UTF-8 and not empty")

    def _file(self, path: Path, name: str, alone: bool) -> Iterator[Document]:
        if is_lines(path):
            yield from self._lines(path, name)
            return
        if path.stat().st_size <= LONGEST and not is_packed(path):
            text = decoded(path.read_bytes(), path)
            if alone and self.cut and len(text) > 2 * PART_BYTES:
                yield from (Document(f"{name}#{i:05}", part) for i, part in enumerate(parts(text)))
            else:
                yield Document(name, text)
            return
        self._check(path)
        if alone and self.cut:
            found = _or_whole(lone_parts(text_blocks(path)))
        else:
            found = _or_whole(cut_long(text_blocks(path)))
        for number, part in found:
            yield Document(name if number is None else f"{name}#{number:05}", part)

    def _check(self, path: Path) -> None:
        """Read a whole file, once, before any of it is used: a broken file is left out whole."""
        status = path.stat()
        stamp = (str(path), status.st_size, status.st_mtime_ns)
        if stamp in self._checked:
            return
        something = False
        for block in text_blocks(path):
            something = something or bool(block.strip())
        if not something:
            raise DataError(f"{path}: is empty")
        self._checked.add(stamp)

    def _lines(self, path: Path, name: str) -> Iterator[Document]:
        something = False
        for number, line in json_lines(path):
            something = True
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: is not JSON: {error}") from None
            if isinstance(row, dict) and MESSAGES in row and self.text_field not in row:
                yield _conversation(row, f"{name}:{number}", f"{path}:{number}", len(line))
                continue
            if not isinstance(row, dict) or not isinstance(row.get(self.text_field), str):
                keys = clean(", ".join(row)) if isinstance(row, dict) else type(row).__name__
                raise DataError(f"{path}:{number}: has no text under '{self.text_field}' (found: {keys}); set --field")
            if text := clean(row[self.text_field]):
                for part, piece in _or_whole(cut_long(iter([text]))):
                    yield Document(f"{name}:{number}" if part is None else f"{name}:{number}#{part:05}", piece)
        if not something:
            raise DataError(f"{path}: is empty")


def _same_names(sources: Sequence[Iterator[tuple[Path, str]]]) -> dict[Path, str]:
    """Return other names for files whose name a file of an earlier source has; the same file again keeps its name."""
    first: dict[str, Path] = {}
    renamed: dict[Path, str] = {}
    for number, files in enumerate(sources, start=1):
        for path, name in files:
            known = first.setdefault(name, path)
            if known != path and known.exists() and path.exists() and not path.samefile(known):
                renamed.setdefault(path, f"{name}@{number}")
    return renamed


def _conversation(row: dict[str, Any], name: str, where: str, size: int) -> Document:
    if size > TURNS:
        raise DataError(
            f"{where}: a conversation of {size:,} characters; the most is {TURNS:,}, since it cannot be cut"
        )
    if not isinstance(tools := clean_values(row.get("tools")), list | None):
        raise DataError(f"{where}: tools must be a list, got {json.dumps(tools)[:100]}")
    messages = check_messages(clean_values(row[MESSAGES]), where)
    return Document(name, messages=messages, tools=tools, size=size)


def cut_long(blocks: Iterator[str]) -> Iterator[str]:
    """Yield pieces of at most LONGEST characters, cut after a paragraph, a line or a word in their second half."""
    held = ""
    for block in blocks:
        held += block
        while len(held) > LONGEST:
            stop = _cut(held, LONGEST)
            yield held[:stop]
            held = held[stop:]
    if held:
        yield held


def _cut(text: str, most: int) -> int:
    """Return where to cut a text that is longer than `most`."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, most // 2, most)
        if found >= 0:
            return found + len(mark)
    return most - 1 if text[most - 1] == "\r" else most  # "\r\n" is one end of a line


def lone_parts(blocks: Iterator[str]) -> Iterator[str]:
    """Yield the `parts` of a text that comes in blocks."""
    held, more = "", True
    while more or held:
        while more and len(held) < 2 * LONGEST:
            block = next(blocks, None)
            more = block is not None
            held += block or ""
        stop = held.find("\n", PART_BYTES) + 1
        if not stop or stop > LONGEST:
            stop = _cut(held, LONGEST) if len(held) > LONGEST else len(held)
        elif not more and len(held) - stop <= PART_BYTES // 2:
            stop = len(held)
        if held[:stop]:
            yield held[:stop]
        held = held[stop:]


def _or_whole(pieces: Iterator[str]) -> Iterator[tuple[int | None, str]]:
    """Yield pieces with their numbers; a text in one piece has no number."""
    first, second = next(pieces, None), next(pieces, None)
    if first is not None and second is None:
        yield None, first
        return
    for number, piece in enumerate(itertools.chain([first, second], pieces)):
        if piece is not None:
            yield number, piece


def parts(text: str) -> Iterator[str]:
    """Yield a long text in pieces of about PART_BYTES characters, cut at ends of lines."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start + PART_BYTES) + 1
        stop = stop if stop and len(text) - stop > PART_BYTES // 2 else len(text)
        yield text[start:stop]
        start = stop


def split_point(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


class HeldOutNames:
    """Decides which documents are held out: those whose name's hash is below a share, at least one and not all.

    Count all names first, then ask for each; no more than two names are stored.
    """

    def __init__(self, share: float):
        """share: the share of all documents that is held out."""
        self.share, self.count, self._chosen = share, 0, 0
        self._least = self._most = ""

    def see(self, name: str) -> None:
        """Count a document."""
        self.count += 1
        point = split_point(name)
        self._chosen += point < self.share
        if not self._least or point < split_point(self._least):
            self._least = name
        if not self._most or point > split_point(self._most):
            self._most = name

    def check(self) -> None:
        """Raise DataError if no document can be held out."""
        if self.count < 2:
            raise DataError(f"held_out: {self.count} document cannot be split; give more text, or several files")

    def __contains__(self, name: str) -> bool:
        """Return whether a document that was counted is held out."""
        if not self._chosen:
            return name == self._least
        return split_point(name) < self.share and not (self._chosen == self.count and name == self._most)
