"""Turn text into a folder of token shards with a manifest; the folder appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import PARTIAL, check_new, disk_errors, new_folder, sha256, user_path, write_file
from interlace.data.chat import DEFAULT, ChatTemplate
from interlace.data.encode import (
    ASIDE,
    DIGEST,
    MIXED,
    SPLITS,
    Column,
    Encoding,
    Piece,
    about,
    as_text,
    encode_piece,
    size_bytes,
)
from interlace.data.sources import HeldOutNames, Sources, Unit, split_point
from interlace.data.tokenizer import END_OF_TEXT, TOKENIZER, Tokenizer
from interlace.data.workers import run_pieces
from interlace.runs.lock import beside, hold
from interlace.runs.progress import Progress, Watch, silent

LOG = logging.getLogger("interlace")
SHARD_TOKENS = 1 << 28
PIECE_BYTES = 8 << 20  # of sources that are encoded together, by one worker
SMALL_BYTES = 256 << 20  # of sources that are looked through before anything is written
MERGED_TOKENS = 1 << 22  # that are copied at a time
LEARNT_BYTES = 12 << 20  # of text that a new tokenizer is learnt from
LEARNT_CHARACTERS = 1 << 16  # of it at a time
LEAST_ENTRIES = 257  # of a new tokenizer: every byte, and the end of a text
MANIFEST, MADE_FOR = "manifest.json", "made_for"


@dataclass(frozen=True)
class Chat:
    """How conversations are written.

    Attributes:
        template: Jinja; the tokenizer's own if None, or `interlace.data.chat.DEFAULT` where it has none.
        turns: which answers are learnt: "all", or "last".
    """

    template: str | None = None
    turns: str = "all"


class _Split:
    """Writes one split's shards and document borders."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self.folder, self.name, self.dtype = folder, name, dtype
        self.tokens = self.documents = self.bytes = self.learnt_tokens = 0
        self.shards: list[dict[str, Any]] = []
        self._shard: Column | None = None
        self._borders = Column(folder / f"{name}.documents")
        self._borders.add(np.zeros(1, dtype="<i8"))
        self._learnt: Column | None = None  # one byte for each token: 1 where an assistant wrote it
        self._weights: Column | None = None  # a number for each token, where turns have weights
        self._pairs: Column | None = None  # of each pair, the tokens of its prompt and of its better answer

    def add(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        learnt: np.ndarray | None,
        weights: np.ndarray | None = None,
        pairs: np.ndarray | None = None,
    ) -> None:
        """Append documents that lie end to end; a shard begins anew before one that it has no room for."""
        if weights is not None:
            self._weights = self._weights or Column(self.folder / f"{self.name}.weights")
            self._weights.add(weights)
        if pairs is not None:
            self._pairs = self._pairs or Column(self.folder / f"{self.name}.pairs")
            self._pairs.add(pairs)
        ends = np.cumsum(lengths, dtype=np.int64)
        begin = first = 0
        while first < len(lengths):
            held = self.shards[-1]["tokens"] if self._shard is not None else 0
            last = int(np.searchsorted(ends - begin, SHARD_TOKENS - held, side="right"))
            if last == first and held:
                self._close_shard()
                continue
            last = max(last, first + 1)
            end = int(ends[last - 1])
            if end > begin:
                if self._shard is None:
                    self._shard = Column(self.folder / f"{self.name}-{len(self.shards):05}.tokens")
                    self.shards.append({"tokens": 0})
                self._shard.add(tokens[begin:end])
                self.shards[-1]["tokens"] += end - begin
            begin, first = end, last
        if learnt is not None:
            self._learnt = self._learnt or Column(self.folder / f"{self.name}.learnt")
            self._learnt.add(learnt)
            self.learnt_tokens += int(learnt.sum())
        self._borders.add((self.tokens + ends).astype("<i8"))
        self.tokens += int(ends[-1]) if len(ends) else 0
        self.documents += len(lengths)

    def _close_shard(self) -> None:
        if self._shard is not None:
            self.shards[-1] = {**self._shard.close(), **self.shards[-1]}
            self._shard = None

    def close(self) -> None:
        """Close what is open, also where writing did not end."""
        for column in (self._shard, self._borders, self._learnt, self._weights, self._pairs):
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
        if self._weights is not None:
            about |= {"weights": self._weights.close()}
        if self._pairs is not None:
            about |= {"pairs": self._pairs.close()}
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
    workers: int = 1,
    drop_duplicates: bool = False,
) -> dict[str, Any]:
    """Write `out` with train and held-out token shards, borders, the tokenizer and a manifest; return the manifest.

    Takes about 1 GiB of memory at most, however long a text, a row or a file is, and some tens of bytes for each
    document. A preparation that was killed goes on with the pieces that it had finished; a compressed file, and a data
    set of the hub, is one piece.

    Args:
        sources: the text.
        tokenizer: a tokenizer.json, or "train:N" to learn a byte-level BPE of N entries from the train split alone.
        out: a folder that does not exist yet, or is empty.
        held_out_share: whole documents, chosen by a hash of their name.
        chat: how conversations are written, where the sources hold some.
        watch: told how far the work is.
        made_for: settings that the folder is made for, kept in the manifest.
        held: whether the caller holds the folder that `out` lies in.
        workers: processes that encode at the same time; the result is the same for any number. More than one are
            spawned: a script needs `if __name__ == "__main__":`.
        drop_duplicates: whether of documents with the same text only the first is kept.

    Raises:
        DataError: a source or the tokenizer cannot be used, or `out` holds something; nothing is then written.
        RunError: another process prepares the same folder.
    """
    out = user_path(out)
    with contextlib.nullcontext() if held else hold(beside(out), out):
        return _prepare(
            sources, tokenizer, out, held_out_share, chat or Chat(), watch, made_for, workers, drop_duplicates
        )


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
    workers: int,
    drop_duplicates: bool,
) -> dict[str, Any]:
    check_tokenizer(tokenizer)
    check_new(out)
    if not 0 < held_out_share < 1:
        raise DataError(f"held_out: must lie between 0 and 1, got {held_out_share}")
    work = out.with_name(f"{out.name}.pieces{PARTIAL}")
    sources = replace(sources, leave_out=(*sources.leave_out, out, work, beside(out)))
    units = list(sources.units(PIECE_BYTES))
    total = sum(unit.size for unit in units)
    few = total <= SMALL_BYTES and all(unit.hub is None for unit in units)
    held, kind = _looked_at(sources, held_out_share, watch, few)
    plan = _plan_of(sources, tokenizer, held, chat, units)
    with disk_errors(out):
        model = _begun(work, plan, lambda: _model(sources, tokenizer, held, chat, total, kind != "text", watch))
    encoding = Encoding(work / "tokenizer", kind, chat.turns, held, _dtype(model))
    try:
        pieces = _pieces(units, work)
        _encode_all(sources, pieces, encoding, model, total, watch, workers)
        manifest = _merge(sources, pieces, encoding, model, out, drop_duplicates, made_for)
    except (ConfigError, DataError):
        shutil.rmtree(work)  # nothing of it serves once the sources are mended
        raise
    shutil.rmtree(work)
    return manifest


def _looked_at(sources: Sources, share: float, watch: Watch, all_of_it: bool) -> tuple[HeldOutNames, str]:
    """Return which documents are held out, and of what kind all are; of much text only the first is read."""
    held, total, kinds = HeldOutNames(share), 0, set[str]()
    for document in sources.fresh():
        held.see(document.name)
        kinds.add(document.kind)
        total += size_bytes(document)
        watch(Progress("reading", total, 0))
        if not all_of_it:
            return HeldOutNames.of_many(share), document.kind
    if len(kinds) > 1:
        raise DataError(MIXED)
    held.check()
    return held, kinds.pop()


def _model(
    sources: Sources, tokenizer: str, held: HeldOutNames, chat: Chat, total: int, conversations: bool, watch: Watch
) -> Tokenizer:
    """Return the tokenizer: the one that is named, or one that is learnt from the train split."""
    watch(Progress("tokenizer", 0, total))
    learnt_from = _sample(sources.fresh(), held, total)
    if not conversations:
        model = _tokenizer(tokenizer, learnt_from)
        if model.eos is None:
            LOG.warning(
                "tokenizer: names no end of text, so that documents get none and a model does not learn to end one; "
                "name eos_token in the tokenizer_config.json beside it"
            )
        return model
    model = _tokenizer(tokenizer, learnt_from, _ends(chat.template))
    model.chat_template = chat.template or model.chat_template or DEFAULT
    with contextlib.closing(model.chat()) as writer:
        _check_end(model, writer.end_of_turn())
    return model


def _plan_of(sources: Sources, tokenizer: str, held: HeldOutNames, chat: Chat, units: Sequence[Unit]) -> dict[str, Any]:
    """Return what the pieces of an earlier start must have been made for, to be used again."""
    spec: Any = tokenizer
    if new_entries(tokenizer) is None:
        model = Tokenizer.from_file(user_path(tokenizer))
        spec = [model.hash(), model.eos, model.bos, model.chat_template]
    stamps = [[str(unit.path), unit.name, unit.start, unit.stop, unit.stamp] for unit in units]
    return {
        "format": 1,
        "tokenizer": spec,
        "template": chat.template,
        "turns": chat.turns,
        "held_out": held.share,
        "field": sources.text_field,
        "kind": sources.kind,
        "aside": sources.aside is not None,
        "units": hashlib.sha256(json.dumps(stamps).encode()).hexdigest(),
    }


def _begun(work: Path, plan: dict[str, Any], make: Callable[[], Tokenizer]) -> Tokenizer:
    """Return the tokenizer of the work that an earlier start left behind, or begin anew."""
    file = work / "plan.json"
    if file.is_file():
        try:
            if json.loads(file.read_text(encoding="utf-8")) == plan:
                return Tokenizer.from_file(work / "tokenizer" / TOKENIZER)
        except ValueError:
            pass  # it was cut off: begin anew
    shutil.rmtree(work, ignore_errors=True)
    model = make()
    (work / "tokenizer").mkdir(parents=True)
    model.write(work / "tokenizer")
    write_file(file, json.dumps(plan))
    return model


def _pieces(units: Sequence[Unit], work: Path) -> list[Piece]:
    """Return the units in groups of about PIECE_BYTES, in order."""
    found: list[Piece] = []
    for unit in units:
        if not found or found[-1].size + unit.size > PIECE_BYTES or unit.hub is not None:
            found.append(Piece(work / f"piece-{len(found):06}"))
        found[-1].units.append(unit)
    return found


def _encode_all(
    sources: Sources,
    pieces: Sequence[Piece],
    encoding: Encoding,
    model: Tokenizer,
    total: int,
    watch: Watch,
    workers: int,
) -> None:
    """Encode the pieces that are left, here or in several processes."""
    pending = [piece for piece in pieces if not piece.folder.is_dir()]
    done = begun = total - sum(piece.size for piece in pending)
    since = time.monotonic()

    def tell(more: int) -> None:
        nonlocal done
        done += more
        spent = time.monotonic() - since
        left = spent / (done - begun) * (total - done) if done > begun and spent > 1 else None
        watch(Progress("encoding", done, total, left))

    tell(0)
    if workers > 1 and len(pending) > 1:
        run_pieces(sources, pending, encoding, min(workers, len(pending)), tell)
        return
    for piece in pending:
        encode_piece(sources, piece, encoding, model, tell)


def _merge(
    sources: Sources,
    pieces: Sequence[Piece],
    encoding: Encoding,
    model: Tokenizer,
    out: Path,
    drop_duplicates: bool,
    made_for: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Join the pieces in a new folder, duplicates left out; return its manifest."""
    dtype = np.dtype(encoding.dtype)
    notes = [about(piece.folder) for piece in pieces]
    counts = [note["documents"] for note in notes]
    kept = _first_ones(pieces) if drop_duplicates else np.ones(sum(counts), dtype=bool)
    ignored: Counter[str] = Counter()
    for note in notes:
        sources.skipped.update(note["skipped"])
        ignored.update(note["ignored"])
    if out.is_dir():
        out.rmdir()
    with new_folder(out) as folder, contextlib.ExitStack() as opened:
        model.write(folder)
        files = {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        splits = {name: _Split(folder, name, dtype) for name in SPLITS}
        for split in splits.values():
            opened.callback(split.close)
        weighted = any(_is_weighted(piece.folder) for piece in pieces)
        first = 0
        for piece, count in zip(pieces, counts, strict=True):
            _add_piece(piece.folder, kept[first : first + count], splits, dtype, encoding.kind, weighted)
            first += count
        for name, split in splits.items():
            if not split.tokens:
                what = "no document" if not split.documents else f"{split.documents:,} documents without a token"
                share = encoding.held.share
                twice = int((~kept).sum())
                why = f", after {twice:,} with the same text as an earlier one were left out" if twice else ""
                raise DataError(f"held_out: {share:g} leaves {what} to {name}{why}; give more text, or another share")
        manifest = {
            "format": 1,
            "dtype": dtype.name,
            "tokenizer": {"sha256": model.hash(), "vocabulary": model.vocabulary, "eos": model.eos},
            "splits": {name: split.manifest() for name, split in splits.items()},
            "files": files,
            "sources": [str(p) for p in sources.paths],
            "skipped": dict(sorted(sources.skipped.items())),
            "ignored": dict(sorted(ignored.items())),
            "duplicates": int((~kept).sum()),
            "aside": sum(note["aside"] for note in notes),
            **({} if made_for is None else {MADE_FOR: dict(made_for)}),
        }
        if manifest["aside"]:
            with open(folder / ASIDE, "wb") as file:
                for piece, note in zip(pieces, notes, strict=True):
                    if note["aside"]:
                        file.write((piece.folder / ASIDE).read_bytes())
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if ignored:
        said = ", ".join(f"{key} ({count})" for key, count in sorted(ignored.items()))
        LOG.warning(
            "data.template: the chat template writes nothing of: %s; they are not learnt. Set data.template to one "
            "that does, or data.turns = 'last' where it leaves them out of earlier turns",
            said,
        )
    return manifest


def _first_ones(pieces: Sequence[Piece]) -> np.ndarray:
    """Return bool [documents]: whether no earlier document is the same."""
    raw = b"".join((piece.folder / "digests").read_bytes() for piece in pieces if (piece.folder / "digests").exists())
    digests = np.frombuffer(raw, dtype=f"V{DIGEST}")
    kept = np.zeros(len(digests), dtype=bool)
    kept[np.unique(digests, return_index=True)[1]] = True
    return kept


def _is_weighted(folder: Path) -> bool:
    return any((folder / f"{name}.weights").is_file() for name in SPLITS)


def _add_piece(
    folder: Path,
    kept: np.ndarray,
    splits: Mapping[str, _Split],
    dtype: np.dtype[Any],
    kind: str,
    weighted: bool = False,
) -> None:
    """Append the documents of a piece that are kept to their splits. weighted: whether some turn has a weight."""
    if not len(kept):
        return
    places = np.fromfile(folder / "splits", dtype=np.uint8)
    lengths, sizes = (np.fromfile(folder / name, dtype="<u4").astype(np.int64) for name in ("lengths", "bytes"))
    for place, name in enumerate(SPLITS):
        own = places == place
        if not own.any():
            continue
        wanted, mine = kept[own], lengths[own]
        ends = np.cumsum(mine)
        all_tokens = _mapped(folder / f"{name}.tokens", dtype)
        all_learnt = _mapped(folder / f"{name}.learnt", np.dtype(np.uint8)) if kind != "text" else None
        all_weights = _mapped(folder / f"{name}.weights", np.dtype("<f4")) if weighted else None
        if all_weights is not None and not len(all_weights) and all_learnt is not None:
            all_weights = all_learnt  # this piece has none
        all_pairs = np.fromfile(folder / f"{name}.pairs", dtype="<u4").reshape(-1, 2) if kind == "pair" else None
        first = begin = 0
        while first < len(mine):  # some documents at a time: a compressed file is one piece, however large
            last = max(first + 1, int(np.searchsorted(ends, begin + MERGED_TOKENS)))
            end, some = int(ends[last - 1]), wanted[first:last]
            tokens, learnt = all_tokens[begin:end], None if all_learnt is None else all_learnt[begin:end]
            weights = None if all_weights is None else all_weights[begin:end].astype("<f4")
            if not some.all():
                each = np.repeat(some, mine[first:last])
                tokens, learnt = tokens[each], None if learnt is None else learnt[each]
                weights = None if weights is None else weights[each]
            pairs = None if all_pairs is None else all_pairs[first:last][some]
            splits[name].add(tokens, mine[first:last][some], learnt, weights, pairs)
            first, begin = last, end
        splits[name].bytes += int(sizes[own][wanted].sum())


def _mapped(file: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the numbers of a file, which are read where they are looked at."""
    return (
        np.memmap(file, dtype=dtype, mode="r") if file.is_file() and file.stat().st_size else np.zeros(0, dtype=dtype)
    )


def _dtype(model: Tokenizer) -> str:
    return "<u2" if model.vocabulary <= 1 << 16 else "<u4"


def _check_end(model: Tokenizer, end: str) -> None:
    """Raise ConfigError if no single token would tell a reader that an answer has ended."""
    size = len(model.encode(end))
    if not model.end_ids(end):
        raise ConfigError(
            f"data.template: ends an answer with {end!r}, which this tokenizer writes as {size} tokens, so that "
            "nothing could tell where an answer ends; end it with {{ eos_token }} or another of its special tokens"
        )


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
    share, left = LEARNT_BYTES / max(total, 1), 2 * LEARNT_BYTES  # sizes of compressed files say little
    for document in sources:
        if document.name in held or (share < 1 and split_point(f"{document.name} tokenizer") >= share):
            continue
        text = document.text or as_text(document)
        left -= len(text)
        if left < 0:
            return
        while len(text) > LEARNT_CHARACTERS:
            stop = max(text.rfind(mark, LEARNT_CHARACTERS // 2, LEARNT_CHARACTERS) for mark in " \n")
            if stop <= 0 or text[stop - 1].isspace() or text[stop + 1 : stop + 2].isspace():
                stop = LEARNT_CHARACTERS
            yield text[:stop]
            text = text[stop:]
        yield text
