"""From text to a folder of token shards with a manifest; the folder appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from interlace.base.errors import DataError
from interlace.base.files import new_folder
from interlace.data.sources import Document, Sources, held_out
from interlace.data.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 28
BATCH_CHARACTERS = 1 << 20  # text encoded at a time
MANIFEST = "manifest.json"

Report = Callable[[str, int, int], None]
"""Called with (what is going on, bytes done, bytes in all)."""


class _Split:
    """Writes one split's shards and document borders."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self.folder, self.name, self.dtype = folder, name, dtype
        self.offsets, self.bytes = [0], 0
        self.shards: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()

    def add(self, ids: list[int], size_bytes: int) -> None:
        if self._file is None or self.shards[-1]["tokens"] + len(ids) > SHARD_TOKENS:
            self.close()
            self.shards.append({"file": f"{self.name}-{len(self.shards):05}.tokens", "tokens": 0})
            self._file = open(self.folder / self.shards[-1]["file"], "wb")  # noqa: SIM115 - closed by close()
            self._digest = hashlib.sha256()
        raw = np.asarray(ids, dtype=self.dtype).tobytes()
        self._file.write(raw)
        self._digest.update(raw)
        self.shards[-1]["tokens"] += len(ids)
        self.offsets.append(self.offsets[-1] + len(ids))
        self.bytes += size_bytes

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self.shards[-1]["sha256"] = self._digest.hexdigest()
            self._file = None

    def manifest(self) -> dict[str, Any]:
        self.close()
        borders = np.asarray(self.offsets, dtype="<i8").tobytes()
        file = f"{self.name}.documents"
        (self.folder / file).write_bytes(borders)
        return {
            "tokens": self.offsets[-1],
            "documents": len(self.offsets) - 1,
            "bytes": self.bytes,
            "shards": self.shards,
            "borders": {"file": file, "sha256": hashlib.sha256(borders).hexdigest()},
        }


def prepare(
    sources: Sources,
    tokenizer: str,
    out: Path,
    *,
    held_out_share: float = 0.05,
    report: Report = lambda *_: None,
) -> dict[str, Any]:
    """Write `out` with train and held-out token shards, borders, the tokenizer and a manifest; return the manifest.

    Args:
        sources: the text.
        tokenizer: a tokenizer.json, or "train:N" to learn a byte-level BPE of N entries from the train split alone.
        out: a folder that does not exist yet, or is empty.
        held_out_share: whole documents, chosen by a hash of their name.
        report: told how far the work is.

    Raises:
        DataError: a source or the tokenizer cannot be used, or `out` holds something; nothing is then written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; name another --out, or remove it")
    if not 0 < held_out_share < 1:
        raise DataError(f"held_out: must lie between 0 and 1, got {held_out_share}")
    names, total = [], 0
    for document in sources:
        names.append(document.name)
        total += len(document.text.encode())
        report("reading", total, 0)
    held = held_out(names, held_out_share)
    report("tokenizer", 0, total)
    model = _tokenizer(tokenizer, (d.text for d in sources if d.name not in held))
    dtype = np.dtype("<u2" if model.vocabulary <= 1 << 16 else "<u4")
    if out.is_dir():
        out.rmdir()
    with new_folder(out) as folder:
        model.write(folder)
        splits = {name: _Split(folder, name, dtype) for name in ("train", "held_out")}
        done = 0
        for batch in _batches(sources):
            ends = [] if model.eos is None else [model.eos]
            encoded = model.encode_batch([d.text for d in batch])
            for document, ids in zip(batch, encoded, strict=True):
                size = len(document.text.encode())
                splits["held_out" if document.name in held else "train"].add(ids + ends, size)
                done += size
            report("encoding", done, total)
        manifest = {
            "format": 1,
            "dtype": dtype.name,
            "tokenizer": {"sha256": model.hash(), "vocabulary": model.vocabulary, "eos": model.eos},
            "splits": {name: split.manifest() for name, split in splits.items()},
            "sources": [str(p) for p in sources.paths],
            "skipped": dict(sorted(sources.skipped.items())),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _tokenizer(spec: str, texts: Iterator[str]) -> Tokenizer:
    kind, _, size = spec.partition(":")
    if kind != "train":
        return Tokenizer.from_file(Path(spec))
    if not size.isdigit():
        raise DataError(f"tokenizer: '{spec}' must be a tokenizer.json or train:N with N entries, such as train:4096")
    return Tokenizer.train(texts, int(size))


def _batches(sources: Sources) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in sources:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
