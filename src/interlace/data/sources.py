"""Read text as people store it: files, folders, globs, JSONL, Parquet, gzip, zstd, data sets of the hub."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

from interlace.base.errors import DataError, first_line
from interlace.base.files import user_path
from interlace.base.text import clean, clean_values
from interlace.data.chat import Messages, check_messages
from interlace.text.rows import (
    KEPT,
    decoded,
    is_lines,
    is_packed,
    is_table,
    json_lines,
    line_starts,
    table_groups,
    table_rows,
    text_blocks,
)

HUB = "hf:"
MESSAGES = "messages"  # the key that holds a conversation in JSONL
CHOSEN, REJECTED, PROMPT = "chosen", "rejected", "prompt"  # the keys of a pair of answers
PART_BYTES = 16_384  # a lone text file is cut into documents of about this size, at line ends
LONGEST = 1 << 20  # characters of a document: a longer text is cut where a paragraph, a line or a word ends
TURNS = 8 << 20  # characters of a conversation's row, which cannot be cut


@dataclass(frozen=True)
class Document:
    """One text and the name by which it is split: a path below its source, with a line or part number.

    Attributes:
        messages: the turns, where the text is a conversation that a chat template has yet to write.
        tools: descriptions of the tools that its assistant may call.
        rejected: of a pair of answers to one prompt, the turns with the worse one; `messages` has the better one.
        common: how many turns of both are the prompt.
        size: characters of the row that a conversation was read from, all its keys included.
    """

    name: str
    text: str = ""
    messages: Messages | None = None
    rejected: Messages | None = None
    common: int = 0
    tools: Sequence[Any] | None = None
    size: int = 0

    @property
    def kind(self) -> str:
        """What it is: "text", "conversation" or "pair"."""
        if self.messages is None:
            return "text"
        return "conversation" if self.rejected is None else "pair"


@dataclass(frozen=True)
class HubData:
    """A data set of the hub: hf:OWNER/NAME, with ?config=...&split=... behind it.

    Attributes:
        text: as it was given.
        options: what `datasets.load_dataset` is called with.
    """

    text: str
    options: tuple[tuple[str, str], ...]

    @staticmethod
    def of(text: str) -> HubData:
        """Read what was given.

        Raises:
            DataError: a key is unknown.
        """
        name, _, query = text.removeprefix(HUB).partition("?")
        given = dict(urllib.parse.parse_qsl(query))
        known = {"config": "name", "split": "split", "files": "data_files", "revision": "revision"}
        if not name or (wrong := given.keys() - known):
            what = f"unknown key '{min(wrong)}'" if name else "no name"
            raise DataError(f"{text}: {what}; write hf:OWNER/NAME?{'&'.join(f'{key}=...' for key in known)}")
        options = {"path": name, "split": "train"} | {known[key]: value for key, value in given.items()}
        return HubData(text, tuple(options.items()))

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, row) of each row, as they come.

        Raises:
            DataError: `datasets` is not installed, or the hub refuses.
        """
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{self.text}: needs the library `datasets`; install it with: pip install 'interlace[datasets]'"
            ) from None
        try:
            found = datasets.load_dataset(**dict(self.options), streaming=True)
            yield from enumerate(found, start=1)
        except Exception as error:
            raise DataError(f"{self.text}: cannot be read: {first_line(error)}") from error


@dataclass(frozen=True)
class Unit:
    """A file, or some rows of one, which can be read by itself.

    Attributes:
        path: the file.
        name: by which its documents are named.
        source: what was named, by a path: the file itself, or a folder.
        alone: whether the file itself was named.
        start, stop: bytes of a file of lines, or groups of rows of a table.
        first: the number of the first row.
        size: bytes, about; 0 where it is not known.
        hub: the data set, where it is one of the hub.
        stamp: size and time of the file when it was found.
    """

    path: Path
    name: str
    source: Path
    alone: bool
    start: int = 0
    stop: int | None = None
    first: int = 1
    size: int = 0
    hub: HubData | None = None
    stamp: tuple[int, int] | None = None

    def check_unchanged(self) -> None:
        """Raise DataError if the file is another than when it was found."""
        if self.stamp is not None and self.stamp != stamp_of(self.path):
            raise DataError(f"{self.path}: changed while it was read; run the command again")

    @property
    def whole(self) -> bool:
        """Whether it is a whole file."""
        return self.start == 0 and self.stop is None


def is_hub(source: str) -> bool:
    """Return whether a source is a data set of the hub."""
    return source.startswith(HUB)


def hidden(path: Path) -> bool:
    """Return whether a file or folder is passed over where it was not named itself."""
    return path.name.startswith(".") or path.name == "__pycache__"


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def everything(_: PurePath) -> bool:
    """Want every file."""
    return True


class Aside(Protocol):
    """Takes rows that cannot be used: where they stand, why, and their first characters."""

    def append(self, row: dict[str, str], /) -> None:
        """Take one."""


@dataclass
class Sources:
    """The documents of some files and folders, in a fixed order; can be read more than once.

    Attributes:
        paths: files, folders, globs, and data sets of the hub as text. Folders are walked; what in them is not text is
            skipped and noted.
        text_field: the key, or the column, that holds the text of a row.
        kind: what rows with turns are: "conversations", "pairs", or "auto", which takes messages where a row has both.
        keep: whether a file of a folder is wanted, given its path below the folder.
        cut: whether a text file that stands alone is cut into parts, each a document.
        skipped: reason by path, filled while reading.
        aside: is given the rows that cannot be used, which are left out; None to refuse them.
        leave_out: files and folders that are passed over in folders, such as what is being written.

    A document has at most LONGEST characters, and no more than about two are in memory at once. Where files of two
    sources have the same name, the later one's is told apart by the number of its source: book.txt and book.txt@2.
    """

    paths: Sequence[Path | str]
    text_field: str = "text"
    kind: str = "auto"
    keep: Callable[[PurePath], bool] = everything
    cut: bool = True
    skipped: dict[str, str] = field(default_factory=dict)
    aside: Aside | None = None
    leave_out: tuple[Path, ...] = ()
    _checked: set[tuple[str, int, int]] = field(default_factory=set)
    _renamed: dict[Path, str] | None = None

    def fresh(self, aside: Aside | None = None) -> Sources:
        """Return the same documents to be read anew, with notes of their own; rows go to `aside`, or are forgotten."""
        kept = None if self.aside is None else deque(maxlen=0) if aside is None else aside
        return replace(self, skipped={}, aside=kept, _checked=set())

    def __iter__(self) -> Iterator[Document]:
        """Yield documents.

        Raises:
            DataError: a source is missing, empty, binary, not UTF-8, or not what its ending says.
        """
        for units in self._by_source():
            folder, found = None, False
            for unit in units:
                folder = folder if unit.alone else unit.source
                for document in self.read(unit):
                    found = True
                    yield document
            if folder is not None and not found:
                raise DataError(f"{folder}: holds no text file that is UTF-8 and not empty")

    def units(self, every: int | None = None) -> Iterator[Unit]:
        """Yield what can be read by itself, in order; large files of rows are cut about `every` bytes."""
        for units in self._by_source(every):
            yield from units

    def _by_source(self, every: int | None = None) -> Iterator[Iterator[Unit]]:
        sources = self._sources()
        paths = [path for path in sources if isinstance(path, Path)]
        if self._renamed is None:
            self._renamed = _same_names([self.files(path) for path in paths]) if len(paths) > 1 else {}
        for source in sources:
            if isinstance(source, HubData):
                yield iter([Unit(Path(source.text), source.text, Path(source.text), True, hub=source)])
            elif source.is_dir():
                yield self._of_folder(source, every)
            elif source.is_file():
                yield _cut_file(source, self._renamed.get(source, source.name), source, True, every)
            elif source.exists():
                raise DataError(f"{source}: is no regular file; write it to one first")
            else:
                raise DataError(f"{source}: no such file or folder")

    def _sources(self) -> list[Path | HubData]:
        found: list[Path | HubData] = []
        for given in self.paths:
            text = str(given)
            if is_hub(text):
                found.append(HubData.of(text))
                continue
            path = user_path(given)
            if not path.exists() and any(c in text for c in "*?["):
                matched = sorted(glob.glob(str(path), recursive=True))
                if not any(not hidden(Path(one)) for one in matched):
                    raise DataError(f"{path}: matches no file")
                paths = [Path(one) for one in matched if not hidden(Path(one))]
                folders = {one for one in paths if one.is_dir()}  # which are read whole
                found += [one for one in paths if not folders.intersection(one.parents)]
            else:
                found.append(path)
        return found

    def files(self, source: Path) -> Iterator[tuple[Path, str]]:
        """Return the wanted files of a source, and their names below it."""
        if not source.is_dir():
            yield source, source.name
            return
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source)
            if any(path.is_relative_to(out) for out in self.leave_out):
                continue
            if not any(hidden(Path(part)) for part in name.parts) and self.keep(name) and path.is_file():
                yield path, name.as_posix()

    def every_file(self) -> Iterator[Path]:
        """Yield the paths of all files, with links followed; missing ones, and data sets of the hub, are left out."""
        for source in self._sources():
            if isinstance(source, Path):
                yield from (path for path, _ in self.files(source.resolve()) if path.is_file())

    def _of_folder(self, folder: Path, every: int | None) -> Iterator[Unit]:
        renamed, none = self._renamed or {}, True
        for path, own in self.files(folder):
            none = False
            yield from _cut_file(path, renamed.get(path, own), folder, False, every)
        if none:
            raise DataError(f"{folder}: holds no text file that is UTF-8 and not empty")

    def read(self, unit: Unit) -> Iterator[Document]:
        """Yield the documents of a unit; what is no text in a folder is skipped and noted."""
        try:
            try:
                yield from self._read(unit)
            except OSError as error:
                raise DataError(f"{unit.path}: cannot be read: {error.strerror or error}") from None
        except DataError as error:
            if unit.alone or is_lines(unit.path) or is_table(unit.path):
                raise
            self.skipped[unit.name] = str(error).removeprefix(f"{unit.path}: ")

    def _read(self, unit: Unit) -> Iterator[Document]:
        path, name = unit.path, unit.name
        if unit.hub is not None:
            yield from self._rows(unit, unit.hub.rows())
        elif is_table(path):
            columns = (self.text_field, MESSAGES, "tools", CHOSEN, REJECTED, PROMPT)
            yield from self._rows(unit, table_rows(path, slice(unit.start, unit.stop), unit.first, columns))
        elif is_lines(path):
            yield from self._lines(unit)
        elif path.stat().st_size <= LONGEST and not is_packed(path):
            text = decoded(path.read_bytes(), path)
            if unit.alone and self.cut and len(text) > 2 * PART_BYTES:
                yield from (Document(f"{name}#{i:05}", part) for i, part in enumerate(parts(text)))
            else:
                yield Document(name, text)
        else:
            self._check(path)
            cut = lone_parts if unit.alone and self.cut else cut_long
            for number, part in _or_whole(cut(text_blocks(path))):
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

    def _lines(self, unit: Unit) -> Iterator[Document]:
        something = False

        def refused(number: int, line: str, error: DataError) -> None:
            self._put_aside(f"{unit.path}:{number}", line, error)

        lines = json_lines(unit.path, unit.start, unit.stop, unit.first, refused if self.aside is not None else None)
        for number, line in lines:
            something, where = True, f"{unit.path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                self._put_aside(where, line, DataError(f"{where}: is not JSON: {error}"))
                continue
            yield from self._documents(row, f"{unit.name}:{number}", where, len(line))
        if not something and unit.whole:
            raise DataError(f"{unit.path}: is empty")

    def _rows(self, unit: Unit, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Document]:
        for number, row in rows:
            size = sum(len(str(value)) for value in row.values())
            where = f"{unit.path if unit.hub is None else unit.name}:{number}"
            yield from self._documents(row, f"{unit.name}:{number}", where, size)

    def _documents(self, row: Any, name: str, where: str, size: int) -> Iterator[Document]:
        """Yield the documents of a row: a text, in pieces if it is long, or a conversation."""
        turns = isinstance(row, dict) and self.text_field not in row
        talk = turns and row.get(MESSAGES) is not None
        pair = turns and CHOSEN in row and REJECTED in row and self.kind != "conversations"
        pair = pair and (self.kind == "pairs" or not talk)
        if pair or talk:
            try:
                yield (_pair if pair else _conversation)(row, name, where, size)
            except DataError as error:
                self._put_aside(where, json.dumps(row, default=str), error)
            return
        if not isinstance(row, dict) or not isinstance(row.get(self.text_field), str):
            keys = clean(", ".join(row)) if isinstance(row, dict) else type(row).__name__
            there = isinstance(row, dict) and self.text_field in row
            said = f"it is {json.dumps(row[self.text_field], default=str)[:40]}" if there else f"found: {keys}"
            what = f"has no text under '{self.text_field}' ({said})" + ("" if there else "; set --field")
            wrong = DataError(f"{where}: {what}")
            self._put_aside(where, json.dumps(row, default=str), wrong)
            return
        if text := clean(row[self.text_field]):
            for part, piece in _or_whole(cut_long(iter([text]))):
                yield Document(name if part is None else f"{name}#{part:05}", piece)

    def _put_aside(self, where: str, row: str, error: DataError) -> None:
        """Put a row that cannot be used aside, or refuse it."""
        if self.aside is None:
            raise error from None
        self.aside.append({"where": where, "why": str(error).removeprefix(f"{where}: "), "row": row.strip()[:KEPT]})


def _cut_file(path: Path, name: str, source: Path, alone: bool, every: int | None) -> Iterator[Unit]:
    """Yield a file as one unit, or a large one of rows as several."""
    stamp = stamp_of(path)
    size = stamp[0] if stamp else 0
    if every is not None and size > every and is_table(path):
        row, begin, held_bytes, rows = 1, 0, 0, 0
        groups = table_groups(path)
        for index, (group_bytes, group_rows) in enumerate(groups, start=1):
            held_bytes, rows = held_bytes + group_bytes, rows + group_rows
            if held_bytes >= every or index == len(groups):
                yield Unit(path, name, source, alone, begin, index, row, held_bytes, stamp=stamp)
                begin, row, held_bytes, rows = index, row + rows, 0, 0
    elif every is not None and size > every and is_lines(path) and not is_packed(path):
        for (start, line), (stop, _) in itertools.pairwise(line_starts(path, every)):
            yield Unit(path, name, source, alone, start, stop, line, stop - start, stamp=stamp)
    else:
        yield Unit(path, name, source, alone, size=size, stamp=stamp)


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


def _pair(row: dict[str, Any], name: str, where: str, size: int) -> Document:
    """Return two answers to one prompt, each given as turns, as turns after `prompt`, or as a text after it."""
    if size > TURNS:
        raise DataError(f"{where}: a pair of {size:,} characters; the most is {TURNS:,}, since it cannot be cut")
    if not isinstance(tools := clean_values(row.get("tools")), list | None):
        raise DataError(f"{where}: tools must be a list, got {json.dumps(tools)[:100]}")
    prompt = clean_values(row.get(PROMPT))
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else prompt or []
    if not isinstance(before, list):
        raise DataError(f"{where}: prompt must be a text or a list of turns, got {json.dumps(before)[:100]}")
    sides = []
    for key in (CHOSEN, REJECTED):
        given = clean_values(row[key])
        if given is None:
            raise DataError(f"{where}: {key} is null; a pair needs both answers")
        if isinstance(given, str):
            if not before:
                raise DataError(f"{where}: {key} is a text, and there is no prompt; give the prompt, or lists of turns")
            given = [{"role": "assistant", "content": given}]
        if not isinstance(given, list):
            raise DataError(f"{where}: {key} must be a list of turns or a text, got {json.dumps(given)[:100]}")
        sides.append(check_messages(_whole(given, before, key, where), f"{where}: {key}"))
    chosen, rejected = sides
    if chosen == rejected:
        raise DataError(f"{where}: chosen and rejected are the same; nothing can be preferred")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if not common:
        raise DataError(f"{where}: chosen and rejected have no common prompt; their first turns differ")
    for key, side in ((CHOSEN, chosen), (REJECTED, rejected)):
        rest = side[common:]
        if any(turn.get("weight") not in (None, 1) for turn in rest):
            raise DataError(f"{where}: {key}: a turn has a weight; the answers of a pair all count the same")
        if any(turn["role"] == "assistant" and not (turn.get("content") or turn.get("tool_calls")) for turn in rest):
            raise DataError(f"{where}: {key}: an answer is empty; nothing of it could be learnt")
        if not rest or rest[0]["role"] != "assistant" or rest[-1]["role"] != "assistant":
            raise DataError(f"{where}: {key} must hold an assistant's answer to the common prompt, and end with one")
    return Document(name, messages=chosen, rejected=rejected, common=common, tools=tools, size=size)


def _whole(given: list[Any], before: list[Any], key: str, where: str) -> list[Any]:
    """Return the turns of one side of a pair: those given, with the prompt's before them unless they begin so."""
    first = given[0] if given else None
    if not before or not isinstance(first, dict) or first.get("role") == "assistant":
        return [*before, *given]
    asked = next(
        (i for i, turn in enumerate(given) if isinstance(turn, dict) and turn.get("role") == "assistant"), len(given)
    )
    if _said(given[asked - 1]) != _said(before[-1]):
        raise DataError(
            f"{where}: {key} begins with turns of its own, of which the last before an answer is not the last of "
            "prompt; leave prompt out, or give the answers alone"
        )
    return given


def _said(turn: Any) -> Any:
    """Return who says what in a turn, blanks at the ends aside."""
    return (turn.get("role"), str(turn.get("content")).strip()) if isinstance(turn, dict) else turn


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

    @staticmethod
    def of_many(share: float) -> HeldOutNames:
        """Return the rule for so many documents that some are held out and some are not, whatever their names are."""
        held = HeldOutNames(share)
        held.count, held._chosen = 2, 1
        return held

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
