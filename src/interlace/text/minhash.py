"""Find near duplicates among many texts without comparing all pairs.

A text is the set of its runs of some words. Two texts are near if their sets share much of their union (Jaccard). A
signature keeps the smallest value of each of K hash functions over the set. The share of places in which two signatures
agree estimates Jaccard. Only texts whose signatures agree in a whole band are compared (Broder 1997; Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, section 3.4).

Hash functions: (a x + b) mod 2^64, its upper half (Dietzfelbinger 1996).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from interlace.text.words import words_of

HASHES = 128
BLOCK = 4096  # shingles hashed at a time


def shingles(text: str, words: int) -> set[str]:
    """Return the runs of so many words, in lower case; the whole text if it has fewer."""
    found = words_of(text)
    if len(found) <= words:
        return {" ".join(found)} if found else {text.strip()}
    return {" ".join(found[i : i + words]) for i in range(len(found) - words + 1)}


def signature(parts: Iterable[str]) -> np.ndarray:
    """Return uint32 [HASHES]: the smallest value of each hash function over the parts."""
    raw = b"".join(hashlib.blake2b(p.encode("utf-8", "replace"), digest_size=4).digest() for p in parts)
    values = np.frombuffer(raw, dtype="<u4").astype(np.uint64)
    least = np.full(HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(values), BLOCK):
        hashed = values[start : start + BLOCK, None] * _A[None] + _B[None]  # modulo 2^64
        least = np.minimum(least, hashed.min(0))
    return (least >> np.uint64(32)).astype(np.uint32)


_RNG = np.random.default_rng(20_261_124)
_A = _RNG.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_B = _RNG.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2)


def bands(threshold: float) -> int:
    """Return the fewest bands that find a pair at the threshold in more than 95 % of cases.

    More bands would find more pairs below the threshold too.
    """
    for count in (4, 8, 16, 32, 64, 128):
        if 1 - (1 - threshold ** (HASHES // count)) ** count > 0.95:
            return count
    return HASHES


def first_of_each(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Return int64 [rows]: for each row the earlier kept row that it is near to, or -1 if it is kept.

    signatures: uint32 [rows, HASHES]. A row that was left out does not leave out others.
    """
    count = bands(threshold)
    width = HASHES // count
    near = np.full(len(signatures), -1, dtype=np.int64)
    buckets = [_shared(signatures[:, b * width : (b + 1) * width]) for b in range(count)]
    kept: list[dict[int, list[int]]] = [{} for _ in range(count)]
    for row in range(len(signatures)):
        candidates = sorted({k for b in range(count) if (n := buckets[b][row]) >= 0 for k in kept[b].get(n, ())})
        if candidates:
            agree = (signatures[candidates] == signatures[row]).mean(1)
            best = int(agree.argmax())
            if agree[best] >= threshold:
                near[row] = candidates[best]
                continue
        for b in range(count):
            if (n := buckets[b][row]) >= 0:
                kept[b].setdefault(int(n), []).append(row)
    return near


def _shared(part: np.ndarray) -> np.ndarray:
    """Return int64 [rows]: a number for each value that two rows or more have, -1 for a value that one row has."""
    _, inverse, counts = np.unique(part, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    return np.where(counts[inverse] > 1, inverse, -1)
