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
MARKS = ("tokens", "learnt", "weights", "pairs")  # of a split


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


class _Weights:
    """A column of how much each token counts, which is written only where some count otherwise than 0 or 1."""

    def __init__(self, column: Column):
        self._column, self._before, self._begun = column, list[np.ndarray](), False

    def add(self, learnt: np.ndarray, weights: np.ndarray) -> None:
        """Append the weights of a document; learnt: which tokens count at all."""
        if not self._begun and np.array_equal(learnt, weights):
            self._before.append(learnt)
            return
        if not self._begun:
            self._begun = True
            for one in self._before:
                self._column.add(one.astype("<f4"))
            self._before.clear()
        self._column.add(weights)


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


Writer = Callable[[Document], list[list[Part]]]
"""Writes a conversation, or both sides of a pair, in parts."""

MIXED = "source: holds documents of several kinds (texts, conversations, pairs of answers); prepare them apart"


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens, the same for every piece.

    Attributes:
        tokenizer: a folder with the tokenizer, its chat template among its files.
        kind: of all documents: "text", "conversation" or "pair".
        turns: which answers of conversations are learnt.
        held: which documents are held out.
        dtype: of the tokens, "<u2" or "<u4".
    """

    tokenizer: Path
    kind: str
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
        turns = [document.messages, document.tools, *([document.rejected] if document.rejected is not None else [])]
        raw = json.dumps(turns, sort_keys=True).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=DIGEST).digest()


def size_bytes(document: Document) -> int:
    """Return the bytes of a document's text, about for a conversation."""
    return len((document.text or as_text(document)).encode("utf-8", "replace"))


def as_text(document: Document) -> str:
    """Return a conversation roughly as it will be written, to learn a tokenizer from."""
    turns = [*(document.messages or ()), *(document.rejected or ())[document.common :]]
    return "\n".join(f"<|{m['role']}|>\n{m.get('content') or ''}" for m in turns)


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
    digest, its split, its tokens and its bytes (digests, splits, lengths, bytes); of each pair in a split, the tokens
    of its prompt and of its better answer, which the worse one follows (NAME.pairs); where a turn has another weight
    than 0 or 1, how much each token counts (NAME.weights); aside.jsonl; piece.json.

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
        names = ("digests", "splits", "lengths", "bytes", *(f"{s}.{k}" for s in SPLITS for k in MARKS))
        columns = {name: Column(folder / name) for name in names}
        for column in columns.values():
            opened.callback(column.close)
        weighted = {split: _Weights(columns[f"{split}.weights"]) for split in SPLITS}
        documents = 0
        for unit in piece.units:
            told = 0
            for batch in in_batches(read.read(unit)):
                batch, written = _written(batch, parts, encoding.kind, read.aside)
                if not batch:
                    continue
                places = [document.name in encoding.held for document in batch]
                encoded = iter(model.encode_pieces([[p.text for p in side] for sides in written for side in sides]))
                lengths, sizes = [], []
                for place, sides in zip(places, written, strict=True):
                    split, found = SPLITS[place], [next(encoded) for _ in sides]
                    if parts is None:
                        tokens = model.begun(found[0][0]) + ends
                    else:
                        prompt = len(found[0][0])  # of a pair: stored once, before both answers
                        pieces = [*zip(sides[0], found[0], strict=True)]
                        if len(sides) > 1:
                            pieces += [*zip(sides[1], found[1], strict=True)][1:]
                            better = sum(map(len, found[0])) - prompt
                            columns[f"{split}.pairs"].add(np.asarray([prompt, better], dtype="<u4"))
                        tokens = [i for _, ids in pieces for i in ids]
                        learnt = np.asarray([p.learnt for p, ids in pieces for _ in ids], dtype=np.uint8)
                        columns[f"{split}.learnt"].add(learnt)
                        weights = [p.weight if p.learnt else 0.0 for p, ids in pieces for _ in ids]
                        weighted[split].add(learnt, np.asarray(weights, dtype="<f4"))
                    columns[f"{split}.tokens"].add(np.asarray(tokens, dtype=encoding.dtype))
                    lengths.append(len(tokens))
                    sizes.append(sum(len(p.text.encode()) for side in sides for p in side))
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
    batch: list[Document], parts: Writer | None, kind: str, aside: Aside | None
) -> tuple[list[Document], list[list[list[Part]]]]:
    """Return documents with what is written of each; conversations that their template refuses are put aside."""
    kept, written = [], []
    for document in batch:
        if document.kind != kind:
            raise DataError(MIXED)
        try:
            found = [[Part(document.text, True)]] if parts is None else parts(document)
        except (ConfigError, DataError) as error:
            if aside is None:
                raise
            why = str(error).removeprefix(f"{document.name}: ")
            aside.append({"where": document.name, "why": why, "row": json.dumps(document.messages)[:KEPT]})
            continue
        kept.append(document)
        written.append(found)
    return kept, written


def _writer(model: Tokenizer, encoding: Encoding, ignored: Counter[str], opened: contextlib.ExitStack) -> Writer | None:
    """Return what writes a conversation, or both of a pair, and counts what its template leaves out; None for texts."""
    if encoding.kind == "text":
        return None
    writer = opened.enter_context(contextlib.closing(model.chat()))

    def parts(document: Document) -> list[list[Part]]:
        pair = document.rejected is not None
        try:
            found = []
            for turns in (document.messages or (), *(() if document.rejected is None else (document.rejected,))):
                asked = [{**turn, "weight": 0} for turn in turns[: document.common]]  # the prompt of a pair
                answers = "all" if pair else encoding.turns
                own = writer.parts([*asked, *turns[document.common :]], answers, document.tools)
                ignored.update(writer.ignored(turns, "".join(p.text for p in own), document.tools))
                found.append(own)
            if pair and found[0] == found[1]:
                raise DataError("the chat template writes chosen and rejected alike; nothing can be preferred")
            if pair and (found[0][0] != found[1][0] or found[0][0].learnt):
                raise DataError("the chat template writes the prompt of the two answers differently")
            return found
        except (ConfigError, DataError) as error:
            raise type(error)(f"{document.name}: {error}") from None

    return parts


def about(folder: Path) -> dict[str, Any]:
    """Return what piece.json says."""
    found: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return found
