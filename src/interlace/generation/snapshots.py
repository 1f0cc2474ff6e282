"""States of texts that were read, kept so that a request that begins with one of them reads only what differs.

A recurrent state is exact at its own position only: it serves texts that begin with all its tokens, and no others.
"""

from __future__ import annotations

import array
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interlace.model.state import ModelState

COMPARED = 256  # snapshots that a text is compared with, the last ones used


@dataclass(frozen=True)
class Snapshot:
    """The state after some tokens.

    Attributes:
        tokens: all of them, int32 as bytes.
        state: of one sequence; it is copied before it is used.
        logits: [vocabulary] after the last token, or None where they are not known.
    """

    tokens: bytes
    state: ModelState
    logits: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.state.nbytes + len(self.tokens) + (0 if self.logits is None else self.logits.nbytes)


class Snapshots:
    """Snapshots of one model, up to a number of bytes; the least recently used are forgotten first.

    Attributes:
        limit_bytes: the most bytes of all together.
        nbytes: the bytes of those that are kept.
    """

    def __init__(self, limit_bytes: int):
        """Begin without any."""
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._kept: OrderedDict[bytes, tuple[str, Snapshot]] = OrderedDict()
        self._lengths: dict[str, Counter[int]] = {}  # by owner: how many tokens its snapshots have

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def keep(self, owner: str, tokens: Sequence[int], state: ModelState, logits: Tensor | None = None) -> bool:
        """Keep a state after these tokens for requests of the same owner; return whether there is space for it.

        state: of one sequence; the caller must not use it any more.
        """
        kept = Snapshot(_bytes(tokens), state, logits)
        if kept.nbytes > self.limit_bytes:
            return False
        key = _hash(owner, kept.tokens).digest()
        self._forget(key)
        self.make_room(self.limit_bytes - kept.nbytes)
        self._kept[key] = owner, kept
        self._lengths.setdefault(owner, Counter())[len(tokens)] += 1
        self.nbytes += kept.nbytes
        return True

    def find(self, owner: str, tokens: Sequence[int], reserve: int = 0) -> tuple[int, ModelState, Tensor | None] | None:
        """Return the longest of an owner's snapshots that these tokens begin with.

        reserve: tokens that the copy's caches have space for.

        Returns:
            Its number of tokens, a copy of its state, and the logits after it, or None where they are not known. All of
            the tokens are never covered by one without logits. None if there is no snapshot.
        """
        given, hashed, done, found = _bytes(tokens), _hash(owner, b""), 0, None
        for length in sorted(self._lengths.get(owner, ())):
            if length > len(tokens):
                break
            hashed.update(given[4 * done : 4 * length])
            done, key = length, hashed.digest()
            _, kept = self._kept.get(key, ("", None))
            whole = length == len(tokens)
            if kept is not None and kept.tokens == given[: 4 * length] and not (whole and kept.logits is None):
                found = key, kept
        if found is None:
            return None
        key, kept = found
        self._kept.move_to_end(key)
        with torch.inference_mode():
            return len(kept.tokens) // 4, kept.state.one(0, reserve), kept.logits

    def shared(self, owner: str, tokens: Sequence[int]) -> int:
        """Return how many of these tokens the text of one of an owner's snapshots begins with, at most."""
        given = np.array(tokens, dtype=np.int32)
        mine = [kept for whose, kept in self._kept.values() if whose == owner]
        return max((common(given, np.frombuffer(kept.tokens, np.int32)) for kept in mine[-COMPARED:]), default=0)

    def has_space(self, nbytes: int) -> bool:
        """Return whether twice so many bytes fit without forgetting any."""
        return self.nbytes + 2 * nbytes <= self.limit_bytes

    def make_room(self, limit_bytes: int) -> None:
        """Forget the least recently used until the rest takes at most so many bytes."""
        while self._kept and self.nbytes > limit_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: bytes) -> None:
        if key not in self._kept:
            return
        owner, kept = self._kept.pop(key)
        self.nbytes -= kept.nbytes
        lengths = self._lengths[owner]
        lengths[len(kept.tokens) // 4] -= 1
        lengths += Counter()  # drops what is 0
        if not lengths:
            del self._lengths[owner]


def common(first: np.ndarray, second: np.ndarray) -> int:
    """Return with how many equal tokens two texts begin."""
    size = min(len(first), len(second))
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if len(differ) else size


def _bytes(tokens: Sequence[int]) -> bytes:
    return array.array("i", tokens).tobytes()


def _hash(owner: str, tokens: bytes) -> hashlib._Hash:
    hashed = hashlib.sha256(len(owner.encode()).to_bytes(8, "little") + owner.encode())
    hashed.update(tokens)
    return hashed
