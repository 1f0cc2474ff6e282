"""Turn text into a folder of token shards with a manifest; the folder appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import new_folder, sha256, user_path
from interlace.data.chat import DEFAULT, ChatTemplate, Part
from interlace.data.sources import Document, HeldOutNames, Sources, split_point
from interlace.data.tokenizer import END_OF_TEXT, Tokenizer
from interlace.runs.lock import beside, hold
from interlace.runs.progress import Progress, Watch, silent

LOG = logging.getLogger("interlace")
SHARD_TOKENS = 1 << 28
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 18, 1024  # text encoded at a time
LEARNT_BYTES = 12 << 20  # of text that a new tokenizer is learnt from
PIECE = 1 << 16  # characters of it at a time
LEAST_ENTRIES = 257  # of a new tokenizer: every byte, and the end of a text
MANIFEST, MADE_FOR = "manifest.json", "made_for"

"""Called with (what is going on, bytes done, bytes in all)."""


@dataclass(frozen=True)
class Chat:
    """How conversations are written.

    Attributes:
        template: Jinja; the tokenizer's own if None, or `interlace.data.chat.DEFAULT` where it has none.
        turns: which answers are learnt: "all", or "last".
    """

    template: str | None = None
    turns: str = "all"


class _Column:
    """A file of numbers that is written as they come."""

    def __init__(self, path: Path):
        self.path, self._digest = path, hashlib.sha256()
        self._file: IO[bytes] | None = None

    def add(self, values: np.ndarray) -> None:
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


class _Split:
    """Writes one split's shards and document borders."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self.folder, self.name, self.dtype = folder, name, dtype
        self.tokens = self.documents = self.bytes = self.learnt_tokens = 0
        self.shards: list[dict[str, Any]] = []
        self._shard: _Column | None = None
        self._borders = _Column(folder / f"{name}.documents")
        self._borders.add(np.zeros(1, dtype="<i8"))
        self._learnt: _Column | None = None  # one byte for each token: 1 where an assistant wrote it

    def add(self, ids: list[int], size_bytes: int, learnt: list[bool] | None = None) -> None:
        if ids and (self._shard is None or self.shards[-1]["tokens"] + len(ids) > SHARD_TOKENS):
            self._close_shard()
            self._shard = _Column(self.folder / f"{self.name}-{len(self.shards):05}.tokens")
            self.shards.append({"tokens": 0})
        if self._shard is not None:
            self._shard.add(np.asarray(ids, dtype=self.dtype))
            self.shards[-1]["tokens"] += len(ids)
        if learnt is not None:
            self._learnt = self._learnt or _Column(self.folder / f"{self.name}.learnt")
            self._learnt.add(np.asarray(learnt, dtype=np.uint8))
            self.learnt_tokens += sum(learnt)
        self.tokens += len(ids)
        self.documents += 1
        self.bytes += size_bytes
        self._borders.add(np.asarray([self.tokens], dtype="<i8"))

    def _close_shard(self) -> None:
        if self._shard is not None:
            self.shards[-1] = {**self._shard.close(), **self.shards[-1]}
            self._shard = None

    def close(self) -> None:
        """Close what is open, also where writing did not end."""
        for column in (self._shard, self._borders, self._learnt):
            if column is not None:
                column.close()

    def manifest(self) -> dict[str, Any]:
        self._close_shard()
        about: dict[str, Any] = {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "shards": self.shards,
            "borders": self._borders.close(),
        }
        if self._learnt is not None:
            about |= {"learnt": self._learnt.close(), "learnt_tokens": self.learnt_tokens}
        return about


def prepare(
    sources: Sources,
    tokenizer: str,
    out: Path,
    *,
    held_out_share: float = 0.05,
    chat: Chat | None = None,
    watch: Watch = silent,
    made_for: Mapping[str, Any] | None = None,
    held: bool = False,
) -> dict[str, Any]:
    """Write `out` with train and held-out token shards, borders, the tokenizer and a manifest; return the manifest.

    Takes about 1 GiB of memory at most, however long a text, a row or a file is.

    Args:
        sources: the text.
        tokenizer: a tokenizer.json, or "train:N" to learn a byte-level BPE of N entries from the train split alone.
        out: a folder that does not exist yet, or is empty.
        held_out_share: whole documents, chosen by a hash of their name.
        chat: how conversations are written, where the sources hold some.
        watch: told how far the work is.
        made_for: settings that the folder is made for, kept in the manifest.
        held: whether the caller holds the folder that `out` lies in.

    Raises:
        DataError: a source or the tokenizer cannot be used, or `out` holds something; nothing is then written.
        RunError: another process prepares the same folder.
    """
    out = user_path(out)
    with contextlib.nullcontext() if held else hold(beside(out), out):
        return _prepare(sources, tokenizer, out, held_out_share, chat or Chat(), watch, made_for)


def check_tokenizer(spec: str) -> None:
    """Raise DataError for a tokenizer that is neither train:N nor a tokenizer.json."""
    if new_entries(spec) is None:
        Tokenizer.from_file(user_path(spec))


def new_entries(spec: str) -> int | None:
    """Return N of train:N; None for a tokenizer's file.

    Raises:
        DataError: N is no number, or too small.
    """
    kind, _, size = spec.partition(":")
    if kind != "train":
        return None
    if not (size.isascii() and size.isdigit() and len(size) < 8) or int(size) < LEAST_ENTRIES:
        raise DataError(
            f"tokenizer: '{spec:.100}' must be a tokenizer.json, or train:N with N entries, such as train:4096; a "
            f"byte-level BPE needs at least {LEAST_ENTRIES}"
        )
    return int(size)


def _prepare(
    sources: Sources,
    tokenizer: str,
    out: Path,
    held_out_share: float,
    chat: Chat,
    watch: Watch,
    made_for: Mapping[str, Any] | None,
) -> dict[str, Any]:
    check_tokenizer(tokenizer)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; name another --out, or remove it")
    if not 0 < held_out_share < 1:
        raise DataError(f"held_out: must lie between 0 and 1, got {held_out_share}")
    held, total, kinds = HeldOutNames(held_out_share), 0, set()
    for document in sources:
        held.see(document.name)
        kinds.add(document.messages is not None)
        total += _bytes(document)
        watch(Progress("reading", total, 0))
    if len(kinds) > 1:
        raise DataError("source: holds texts and conversations; prepare them apart")
    held.check()
    watch(Progress("tokenizer", 0, total))
    learnt_from = _sample(sources, held, total)
    if True not in kinds:
        model = _tokenizer(tokenizer, learnt_from)
        if model.eos is None:
            LOG.warning(
                "tokenizer: names no end of text, so that documents get none and a model does not learn to end one; "
                "name eos_token in the tokenizer_config.json beside it"
            )
        return _write(sources, model, held, out, total, watch, made_for=made_for)
    model = _tokenizer(tokenizer, learnt_from, _ends(chat.template))
    model.chat_template = chat.template or model.chat_template or DEFAULT
    with contextlib.closing(model.chat()) as writer:
        _check_end(model, writer.end_of_turn())

        def parts(document: Document) -> list[Part]:
            try:
                found = writer.parts(document.messages or (), chat.turns, document.tools)
                ignored.update(writer.ignored(document.messages or (), "".join(p.text for p in found), document.tools))
                return found
            except (ConfigError, DataError) as error:
                raise type(error)(f"{document.name}: {error}") from None

        ignored: Counter[str] = Counter()
        manifest = _write(sources, model, held, out, total, watch, parts, ignored, made_for)
    if ignored:
        counts = ", ".join(f"{key} ({count})" for key, count in sorted(ignored.items()))
        LOG.warning(
            "data.template: the chat template writes nothing of: %s; they are not learnt. Set data.template to one "
            "that does, or data.turns = 'last' where it leaves them out of earlier turns",
            counts,
        )
    return manifest


def _check_end(model: Tokenizer, end: str) -> None:
    """Raise ConfigError if no single token would tell a reader that an answer has ended."""
    size = len(model.encode(end))
    if not model.end_ids(end):
        raise ConfigError(
            f"data.template: ends an answer with {end!r}, which this tokenizer writes as {size} tokens, so that "
            "nothing could tell where an answer ends; end it with {{ eos_token }} or another of its special tokens"
        )


def _as_text(document: Document) -> str:
    """Return a conversation roughly as it will be written, to learn a tokenizer from."""
    return "\n".join(f"<|{m['role']}|>\n{m.get('content') or ''}" for m in document.messages or ())


def _bytes(document: Document) -> int:
    return len((document.text or _as_text(document)).encode("utf-8", "replace"))


def _write(
    sources: Sources,
    model: Tokenizer,
    held: HeldOutNames,
    out: Path,
    total: int,
    watch: Watch,
    parts: Callable[[Document], list[Part]] | None = None,
    ignored: Mapping[str, int] | None = None,
    made_for: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Encode everything into a new folder; `ignored` is counted while it goes on."""
    dtype = np.dtype("<u2" if model.vocabulary <= 1 << 16 else "<u4")
    if out.is_dir():
        out.rmdir()
    with new_folder(out) as folder, contextlib.ExitStack() as opened:
        model.write(folder)
        files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        splits = {name: _Split(folder, name, dtype) for name in ("train", "held_out")}
        for split in splits.values():
            opened.callback(split.close)
        done = 0
        for batch in _batches(sources):
            ends = [] if model.eos is None else [model.eos]
            written = [[Part(d.text, True)] if parts is None else parts(d) for d in batch]
            encoded = model.encode_pieces([[p.text for p in pieces] for pieces in written])
            for document, pieces, ids in zip(batch, written, encoded, strict=True):
                split = splits["held_out" if document.name in held else "train"]
                if parts is None:
                    split.add(model.begun(ids[0]) + ends, len(document.text.encode()))
                else:
                    learnt = [p.learnt for p, part in zip(pieces, ids, strict=True) for _ in part]
                    split.add([i for part in ids for i in part], sum(len(p.text.encode()) for p in pieces), learnt)
                done += _bytes(document)
            watch(Progress("encoding", done, total))
        for name, split in splits.items():
            if not split.tokens:
                what = "no document" if not split.documents else f"{split.documents:,} documents without a token"
                raise DataError(f"held_out: {held.share:g} leaves {what} to {name}; give more text, or another share")
        manifest = {
            "format": 1,
            "dtype": dtype.name,
            "tokenizer": {"sha256": model.hash(), "vocabulary": model.vocabulary, "eos": model.eos},
            "splits": {name: split.manifest() for name, split in splits.items()},
            "files": files,
            "sources": [str(p) for p in sources.paths],
            "skipped": dict(sorted(sources.skipped.items())),
            "ignored": dict(sorted((ignored or {}).items())),
            **({} if made_for is None else {MADE_FOR: dict(made_for)}),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _tokenizer(spec: str, texts: Iterator[str], special: Sequence[str] = ()) -> Tokenizer:
    size = new_entries(spec)
    return Tokenizer.from_file(user_path(spec)) if size is None else Tokenizer.train(texts, size, special)


def _ends(template: str | None) -> list[str]:
    """Return the texts that a new tokenizer needs as one token, because answers end with them."""
    if template is None:
        return []
    with contextlib.closing(ChatTemplate(template, END_OF_TEXT)) as writer:
        end = writer.end_of_turn()
    return [end] if end not in ("", END_OF_TEXT) else []


def _sample(sources: Sources, held: HeldOutNames, total: int) -> Iterator[str]:
    """Yield the text that a new tokenizer is learnt from, in short pieces: the train split, or a share of it.

    Pieces are cut before a space, which changes no word of a byte-level tokenizer.
    """
    share = LEARNT_BYTES / max(total, 1)
    for document in sources:
        if document.name in held or (share < 1 and split_point(f"{document.name} tokenizer") >= share):
            continue
        text = document.text or _as_text(document)
        while len(text) > PIECE:
            stop = max(text.rfind(" ", PIECE // 2, PIECE), text.rfind("\n", PIECE // 2, PIECE))
            stop = (
                stop if stop > 0 and not text[stop - 1].isspace() and not text[stop + 1 : stop + 2].isspace() else PIECE
            )
            yield text[:stop]
            text = text[stop:]
        yield text


def _batches(sources: Sources) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in sources:
        batch.append(document)
        size += max(_bytes(document), document.size)
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
