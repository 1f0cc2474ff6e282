"""Encode one piece of a source into a folder of its own: the same files whoever does it, whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import new_folder
from interlace.data.chat import Part
from interlace.data.sources import Aside, Document, HeldOutNames, Sources, Unit
from interlace.data.tokenizer import Tokenizer
from interlace.text.rows import KEPT

BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 18, 1024  # text encoded at a time
DIGEST = 16  # bytes that a document is known by
ABOUT, ASIDE = "piece.json", "aside.jsonl"  # the rows that could not be used
SPLITS = ("train", "held_out")


class Column:
    """A file of numbers that is written as they come."""

    def __init__(self, path: Path):
        """path: the file; it is made when the first numbers come."""
        self.path, self._digest = path, hashlib.sha256()
        self._file: IO[bytes] | None = None

    def add(self, values: np.ndarray) -> None:
        """Append numbers, in the form they have."""
        if self._file is None:
            self._file = open(self.path, "wb")  # noqa: SIM115 - closed by close()
        raw = values.tobytes()
        self._file.write(raw)
        self._digest.update(raw)

    def close(self) -> dict[str, str]:
        """Close the file; return its name and hash."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return {"file": self.path.name, "sha256": self._digest.hexdigest()}


class Lines:
    """A file of rows as JSON, one for each line, that is written as they come."""

    def __init__(self, path: Path):
        """path: the file; it is made when the first row comes."""
        self.path, self.count = path, 0
        self._file: IO[str] | None = None

    def append(self, row: dict[str, str]) -> None:
        """Write a row."""
        if self._file is None:
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._file.write(json.dumps(row) + "\n")
        self.count += 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens, the same for every piece.

    Attributes:
        tokenizer: a folder with the tokenizer, its chat template among its files.
        turns: which answers of conversations are learnt; "" where the documents are texts.
        held: which documents are held out.
        dtype: of the tokens, "<u2" or "<u4".
    """

    tokenizer: Path
    turns: str
    held: HeldOutNames
    dtype: str


@dataclass
class Piece:
    """Units that are encoded together.

    Attributes:
        folder: where the result goes.
        units: in order.
    """

    folder: Path
    units: list[Unit] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of its units, about."""
        return sum(unit.size for unit in self.units)


def digest(document: Document) -> bytes:
    """Return what tells a document from every other: a hash of its text, or of its turns."""
    if document.messages is None:
        raw = document.text.encode("utf-8", "surrogatepass")
    else:
        raw = json.dumps([document.messages, document.tools], sort_keys=True).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=DIGEST).digest()


def size_bytes(document: Document) -> int:
    """Return the bytes of a document's text, about for a conversation."""
    return len((document.text or as_text(document)).encode("utf-8", "replace"))


def as_text(document: Document) -> str:
    """Return a conversation roughly as it will be written, to learn a tokenizer from."""
    return "\n".join(f"<|{m['role']}|>\n{m.get('content') or ''}" for m in document.messages or ())


def in_batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield documents in lists of bounded size."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += max(size_bytes(document), document.size)
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_piece(
    sources: Sources, piece: Piece, encoding: Encoding, model: Tokenizer, tell: Callable[[int], None]
) -> None:
    """Encode a piece into its folder, which appears whole or not at all.

    Files: tokens of each split (NAME.tokens) and marks of what is learnt (NAME.learnt); of each document in order, its
    digest, its split, its tokens and its bytes (digests, splits, lengths, bytes); aside.jsonl; piece.json.

    Args:
        sources: that the units come from; what it skips and puts aside is noted.
        tell: told of bytes that were read, as they are.
    """
    ends = [] if model.eos is None else [model.eos]
    ignored: Counter[str] = Counter()
    with new_folder(piece.folder) as folder, contextlib.ExitStack() as opened:
        parts = _writer(model, encoding, ignored, opened)
        aside = opened.enter_context(contextlib.closing(Lines(folder / ASIDE)))
        read = sources.fresh(aside)
        names = ("digests", "splits", "lengths", "bytes", *(f"{s}.{k}" for s in SPLITS for k in ("tokens", "learnt")))
        columns = {name: Column(folder / name) for name in names}
        for column in columns.values():
            opened.callback(column.close)
        documents = 0
        for unit in piece.units:
            told = 0
            for batch in in_batches(read.read(unit)):
                batch, written = _written(batch, parts, read.aside)
                if not batch:
                    continue
                places = [document.name in encoding.held for document in batch]
                encoded = model.encode_pieces([[p.text for p in pieces] for pieces in written])
                lengths, sizes = [], []
                for place, pieces, ids in zip(places, written, encoded, strict=True):
                    split = SPLITS[place]
                    if parts is None:
                        tokens = model.begun(ids[0]) + ends
                    else:
                        tokens = [i for part in ids for i in part]
                        learnt = [p.learnt for p, part in zip(pieces, ids, strict=True) for _ in part]
                        columns[f"{split}.learnt"].add(np.asarray(learnt, dtype=np.uint8))
                    columns[f"{split}.tokens"].add(np.asarray(tokens, dtype=encoding.dtype))
                    lengths.append(len(tokens))
                    sizes.append(sum(len(p.text.encode()) for p in pieces))
                columns["digests"].add(np.frombuffer(b"".join(map(digest, batch)), dtype=np.uint8))
                columns["splits"].add(np.asarray(places, dtype=np.uint8))
                columns["lengths"].add(np.asarray(lengths, dtype="<u4"))
                columns["bytes"].add(np.asarray(sizes, dtype="<u4"))
                documents += len(batch)
                more = min(sum(map(size_bytes, batch)), max(0, unit.size - told)) if unit.size else 0
                told += more
                tell(more)
            unit.check_unchanged()
            tell(unit.size - told)
        aside.close()
        about = {"documents": documents, "skipped": read.skipped, "aside": aside.count, "ignored": dict(ignored)}
        (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _written(
    batch: list[Document], parts: Callable[[Document], list[Part]] | None, aside: Aside | None
) -> tuple[list[Document], list[list[Part]]]:
    """Return documents with what is written of each; conversations that their template refuses are put aside."""
    kept, written = [], []
    for document in batch:
        _check_kind(document, parts is not None)
        try:
            found = [Part(document.text, True)] if parts is None else parts(document)
        except (ConfigError, DataError) as error:
            if aside is None:
                raise
            why = str(error).removeprefix(f"{document.name}: ")
            aside.append({"where": document.name, "why": why, "row": json.dumps(document.messages)[:KEPT]})
            continue
        kept.append(document)
        written.append(found)
    return kept, written


def _check_kind(document: Document, conversations: bool) -> None:
    if (document.messages is not None) != conversations:
        raise DataError("source: holds texts and conversations; prepare them apart")


def _writer(
    model: Tokenizer, encoding: Encoding, ignored: Counter[str], opened: contextlib.ExitStack
) -> Callable[[Document], list[Part]] | None:
    """Return what writes a conversation, and counts what its template leaves out; None for texts."""
    if not encoding.turns:
        return None
    writer = opened.enter_context(contextlib.closing(model.chat()))

    def parts(document: Document) -> list[Part]:
        try:
            found = writer.parts(document.messages or (), encoding.turns, document.tools)
            ignored.update(writer.ignored(document.messages or (), "".join(p.text for p in found), document.tools))
            return found
        except (ConfigError, DataError) as error:
            raise type(error)(f"{document.name}: {error}") from None

    return parts


def about(folder: Path) -> dict[str, Any]:
    """Return what piece.json says."""
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found
