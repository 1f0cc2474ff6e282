"""Read a folder that `prepare` wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import read_json, sha256, user_path
from interlace.base.schema import Closed, validate
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
        weights: float32 [count], how much each of these tokens counts; None where all count the same.
        pairs: uint32 [documents, 2], where each document is a prompt and two answers, the better one first: the tokens
            of the prompt and of the better answer; None for other documents.
    """

    shards: Sequence[np.ndarray]
    starts: np.ndarray
    borders: np.ndarray
    learnt: np.ndarray | None = None
    weights: np.ndarray | None = None
    pairs: np.ndarray | None = None

    @property
    def kind(self) -> str:
        """What its documents are: "text", "conversation" or "pair"."""
        return "text" if self.learnt is None else "conversation" if self.pairs is None else "pair"

    @property
    def count(self) -> int:
        """How many tokens the split has."""
        return int(self.borders[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens [start, stop), int64."""
        found = []
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[shard + 1]))
            base = int(self.starts[shard])
            found.append(self.shards[shard][start - base : end - base].astype(np.int64))
            start, shard = end, shard + 1
        return np.concatenate(found)


SHA256 = r"^[0-9a-f]{64}$"
NAME = r"^([\w-][\w.-]*/)?[\w-][\w.-]*$"  # of a file, or of one in a folder below


class _File(Closed):
    file: str = Field(pattern=r"^[\w-][\w.-]*$")
    sha256: str = Field(pattern=SHA256)


class _Shard(_File):
    tokens: int = Field(gt=0)


class _SplitManifest(Closed):
    tokens: int = Field(ge=0)
    documents: int = Field(ge=0)
    bytes: int = Field(ge=0)
    shards: tuple[_Shard, ...] = Field(strict=False)
    borders: _File
    learnt: _File | None = None
    weights: _File | None = None
    pairs: _File | None = None
    learnt_tokens: int | None = Field(default=None, ge=0)


class _TokenizerManifest(Closed):
    sha256: str
    vocabulary: int = Field(gt=0)
    eos: int | None


class _Splits(Closed):
    train: _SplitManifest
    held_out: _SplitManifest


class _Manifest(Closed):
    """What manifest.json must hold; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    format: Literal[1]
    files: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(pattern=SHA256)]] = Field(default={})
    dtype: Literal["uint16", "uint32"]
    tokenizer: _TokenizerManifest
    splits: _Splits


@dataclass(frozen=True)
class Corpus:
    """A prepared folder: splits by name ("train", "held_out"), the tokenizer and the manifest."""

    folder: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    splits: dict[str, TokenSplit]
    parts: tuple[tuple[str, Corpus], ...] = ()  # of a mixture, by name

    @staticmethod
    def open(folder: Path) -> Corpus:
        """Open a prepared folder; lengths and borders are checked here, checksums by `verify`.

        Raises:
            DataError: a file is missing or damaged, or the tokenizer is not the one it was made with.
        """
        folder = user_path(folder)
        manifest = read_json(folder / MANIFEST, "the manifest of a prepared folder")
        check_manifest(folder / MANIFEST, manifest)
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        if tokenizer.hash() != manifest["tokenizer"]["sha256"]:
            raise DataError(f"{folder / 'tokenizer.json'}: does not match the tokens (its hash differs); restore it")
        if tokenizer.eos != manifest["tokenizer"]["eos"]:
            raise DataError(
                f"{folder / 'tokenizer_config.json'}: names another end of text than the tokens have ({tokenizer.eos}, "
                f"not {manifest['tokenizer']['eos']}); restore it"
            )
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        splits = {name: _open_split(folder, part, dtype) for name, part in manifest["splits"].items()}
        return Corpus(folder, manifest, tokenizer, splits)

    def verify(self) -> None:
        """Compare every file with its checksum; raises DataError at the first that differs or is missing.

        Folders from before the tokenizer's files had checksums are compared without.
        """
        sums = dict(self.manifest.get("files", {}))
        if sums and (added := self.tokenizer.files.keys() - sums):
            raise DataError(f"{self.folder / min(added)}: was not there when the text was prepared; remove it")
        for part in self.manifest["splits"].values():
            for entry in (
                *part["shards"],
                part["borders"],
                *(part[k] for k in ("learnt", "weights", "pairs") if part.get(k)),
            ):
                sums[entry["file"]] = entry["sha256"]
        for name, known in sums.items():
            path = self.folder / name
            if not path.is_file():
                raise DataError(f"{path}: missing; prepare again")
            if sha256(path) != known:
                raise DataError(f"{path}: is damaged (its checksum differs); prepare again")

    def fingerprint(self) -> str:
        """sha256 of what decides the tokens: the same for the same text prepared again, wherever it lies."""
        parts = {key: self.manifest[key] for key in ("dtype", "tokenizer", "splits")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_manifest(path: Path, manifest: Any) -> None:
    """Raise DataError for a manifest that no preparation wrote."""
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int or manifest["format"] != 1:
        raise DataError(f"{path}: is not a manifest of format 1; prepare the data again")
    try:
        found = validate(_Manifest, manifest, "manifest")
    except ConfigError as error:
        raise DataError(f"{path}: is damaged: {error}; prepare the data again") from None
    for name in ("train", "held_out"):
        split = getattr(found.splits, name)
        if sum(shard.tokens for shard in split.shards) != split.tokens:
            raise DataError(f"{path}: is damaged: the shards of {name} do not add up; prepare the data again")
    if len({split.learnt is None for split in (found.splits.train, found.splits.held_out) if split.documents}) > 1:
        raise DataError(f"{path}: is damaged: one split says what was learnt, the other not; prepare the data again")


def _open_split(folder: Path, part: dict[str, Any], dtype: np.dtype[Any]) -> TokenSplit:
    shards = []
    for entry in part["shards"]:
        path = folder / entry["file"]
        expected = entry["tokens"] * dtype.itemsize
        size = path.stat().st_size if path.is_file() else -1
        if size != expected:
            raise DataError(f"{path}: has {max(size, 0):,} bytes, but the manifest says {expected:,}; prepare again")
        shards.append(np.memmap(path, dtype=dtype, mode="r"))
    starts = np.cumsum([0, *(s.shape[0] for s in shards)])
    borders, learnt = _open_borders(folder, part), _open_learnt(folder, part)
    return TokenSplit(shards, starts, borders, learnt, _open_weights(folder, part), _open_pairs(folder, part))


def _open_weights(folder: Path, part: dict[str, Any]) -> np.ndarray | None:
    if part.get("weights") is None:
        return None
    path = folder / part["weights"]["file"]
    if not path.is_file() or path.stat().st_size != 4 * part["tokens"]:
        raise DataError(f"{path}: is missing or has the wrong length; prepare again")
    weights = np.memmap(path, dtype="<f4", mode="r")
    if not bool((weights >= 0).all()):
        raise DataError(f"{path}: is damaged: a weight is not a number from 0 on; prepare again")
    return weights


def _open_borders(folder: Path, part: dict[str, Any]) -> np.ndarray:
    """int64 [documents + 1]: where each document starts, and the end."""
    path = folder / part["borders"]["file"]
    if not path.is_file() or path.stat().st_size != 8 * (part["documents"] + 1):
        raise DataError(f"{path}: is missing or has the wrong length; prepare again")
    borders = np.memmap(path, dtype="<i8", mode="r")
    if borders[0] != 0 or borders[-1] != part["tokens"] or bool((np.diff(borders) < 0).any()):
        raise DataError(f"{path}: is damaged: documents must follow one another to the last token; prepare again")
    return borders


def _open_learnt(folder: Path, part: dict[str, Any]) -> np.ndarray | None:
    if part.get("learnt") is None:
        return None
    path = folder / part["learnt"]["file"]
    if not path.is_file() or path.stat().st_size != part["tokens"]:
        raise DataError(f"{path}: is missing or has the wrong length; prepare again")
    if bool((np.memmap(path, dtype=np.uint8, mode="r") > 1).any()):
        raise DataError(f"{path}: is damaged: a mark is neither 0 nor 1; prepare again")
    return np.memmap(path, dtype=np.bool_, mode="r")


def _open_pairs(folder: Path, part: dict[str, Any]) -> np.ndarray | None:
    if part.get("pairs") is None:
        return None
    path = folder / part["pairs"]["file"]
    if not path.is_file() or path.stat().st_size != 8 * part["documents"]:
        raise DataError(f"{path}: is missing or has the wrong length; prepare again")
    pairs = np.memmap(path, dtype="<u4", mode="r").reshape(-1, 2)
    sizes = np.diff(np.memmap(folder / part["borders"]["file"], dtype="<i8", mode="r"))
    if bool((pairs == 0).any() or (pairs.sum(1, dtype=np.int64) >= sizes).any()):
        raise DataError(f"{path}: is damaged: a pair has no prompt or no answer; prepare again")
    return pairs
