"""Reading a folder that `prepare` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interlace.base.errors import DataError
from interlace.base.files import read_json, sha256
from interlace.data.prepare import MANIFEST
from interlace.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split, on disk.

    Attributes:
        shards: memory-mapped, in order.
        starts: int64 [shards + 1], where each shard begins on the split's axis.
        borders: int64 [documents + 1], where each document begins; each ends with the end-of-text token, but for
            conversations, which end as their template says.
        learnt: bool [count], which tokens of conversations an assistant wrote; None for texts.
    """

    shards: Sequence[np.ndarray]
    starts: np.ndarray
    borders: np.ndarray
    learnt: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Tokens in the split."""
        return int(self.borders[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), int64."""
        found = []
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[shard + 1]))
            base = int(self.starts[shard])
            found.append(self.shards[shard][start - base : end - base].astype(np.int64))
            start, shard = end, shard + 1
        return np.concatenate(found)


@dataclass(frozen=True)
class Corpus:
    """A prepared folder: splits by name ("train", "held_out"), the tokenizer and the manifest."""

    folder: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    splits: dict[str, TokenSplit]

    @staticmethod
    def open(folder: Path) -> Corpus:
        """Open a prepared folder; lengths are checked here, checksums by `verify`.

        Raises:
            DataError: a file is missing, has another length, or the tokenizer is not the one it was made with.
        """
        manifest = read_json(folder / MANIFEST, "the manifest of a prepared folder")
        if not isinstance(manifest, dict) or manifest.get("format") != 1:
            raise DataError(f"{folder / MANIFEST}: is not a manifest of format 1; prepare the data again")
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        if tokenizer.hash() != manifest["tokenizer"]["sha256"]:
            raise DataError(f"{folder / 'tokenizer.json'}: does not match the tokens (its hash differs); restore it")
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        splits = {name: _open_split(folder, part, dtype) for name, part in manifest["splits"].items()}
        return Corpus(folder, manifest, tokenizer, splits)

    def verify(self) -> None:
        """Compare every file with its checksum; raises DataError at the first that differs."""
        for part in self.manifest["splits"].values():
            for entry in (*part["shards"], part["borders"], *([part["learnt"]] if "learnt" in part else [])):
                if sha256(self.folder / entry["file"]) != entry["sha256"]:
                    raise DataError(f"{self.folder / entry['file']}: is damaged (its checksum differs); prepare again")


def _open_split(folder: Path, part: dict[str, Any], dtype: np.dtype[Any]) -> TokenSplit:
    shards = []
    for entry in part["shards"]:
        path = folder / entry["file"]
        expected = entry["tokens"] * dtype.itemsize
        size = path.stat().st_size if path.is_file() else -1
        if size != expected:
            raise DataError(f"{path}: has {max(size, 0):,} bytes, but the manifest says {expected:,}; prepare again")
        shards.append(np.memmap(path, dtype=dtype, mode="r"))
    path = folder / part["borders"]["file"]
    if not path.is_file() or path.stat().st_size != 8 * (part["documents"] + 1):
        raise DataError(f"{path}: is missing or has the wrong length; prepare again")
    starts = np.cumsum([0, *(s.shape[0] for s in shards)])
    return TokenSplit(shards, starts, np.fromfile(path, dtype="<i8"), _open_learnt(folder, part))


def _open_learnt(folder: Path, part: dict[str, Any]) -> np.ndarray | None:
    if "learnt" not in part:
        return None
    path = folder / part["learnt"]["file"]
    if not path.is_file() or path.stat().st_size != part["tokens"]:
        raise DataError(f"{path}: is missing or has the wrong length; prepare again")
    return np.memmap(path, dtype=np.bool_, mode="r")
