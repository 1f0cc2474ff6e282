"""The files of a cache: which tokens each shard is of, and how a token's record lies in it.

Records are of the tokens whose next token is learnt, in the order of the data. A shard is of whole documents. Its file
holds one array after the other, as `Layout` says, and is memory-mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interlace.base.errors import DataError
from interlace.base.files import write_file
from interlace.data.tokens import TokenSplit

SHARD_TOKENS = 1 << 18  # at least, but for the last
ADVICE = "remove it, and run `interlace distill logits` again"


def borders_of(split: TokenSplit, tokens: int = SHARD_TOKENS) -> list[int]:
    """Return where the shards of a split begin, and its end: at documents, at least `tokens` apart."""
    found, borders = [0], np.asarray(split.borders)
    while found[-1] < split.count:
        place = int(np.searchsorted(borders, found[-1] + tokens))
        found.append(int(borders[min(place, len(borders) - 1)]))
    return found


def learnt_places(split: TokenSplit, begin: int, end: int) -> np.ndarray:
    """Return bool [end - begin]: which tokens have a next one in their document that is learnt."""
    follows = np.ones(end - begin, dtype=bool)
    last = np.asarray(split.borders[1:]) - 1
    first, stop = np.searchsorted(last, (begin, end))
    follows[last[first:stop] - begin] = False
    if split.learnt is not None:
        learnt = np.zeros(end - begin, dtype=bool)
        learnt[: len(split.learnt[begin + 1 : end + 1])] = split.learnt[begin + 1 : end + 1]
        follows &= learnt
    return follows


@dataclass(frozen=True)
class Layout:
    """The arrays of a shard, in order.

    Attributes:
        arrays: (name, dtype, shape) of each.
    """

    arrays: Sequence[tuple[str, str, tuple[int, ...]]]

    def write(self, path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[int, str]:
        """Write a shard that appears whole; return its bytes and their sha256."""
        raw = b"".join(np.ascontiguousarray(arrays[name], dtype=kind).tobytes() for name, kind, _ in self.arrays)
        write_file(path, raw)
        return len(raw), hashlib.sha256(raw).hexdigest()

    def read(self, path: Path, sha256: str) -> dict[str, np.ndarray]:
        """Return the arrays of a shard, memory-mapped, after its bytes were compared with their sum.

        Raises:
            DataError: it is missing, cut off, or damaged.
        """
        size = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for _, kind, shape in self.arrays)
        if not path.is_file():
            raise DataError(f"{path}: is missing; run `interlace distill logits` again")
        if path.stat().st_size != size:
            raise DataError(f"{path}: has {path.stat().st_size:,} bytes, and had {size:,}; {ADVICE}")
        raw: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r") if size else np.zeros(0, np.uint8)
        if hashlib.sha256(raw.data).hexdigest() != sha256:
            raise DataError(f"{path}: is damaged: its bytes are not those that were written; {ADVICE}")
        return dict(self._cut(raw))

    def _cut(self, raw: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        place = 0
        for name, kind, shape in self.arrays:
            size = np.dtype(kind).itemsize * int(np.prod(shape))
            yield name, raw[place : place + size].view(kind).reshape(shape)
            place += size
