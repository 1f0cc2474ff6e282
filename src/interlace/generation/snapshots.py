"""States of texts that were read, kept so that a request that begins with one of them reads only what differs.

A recurrent state is exact at its own position only: it serves texts that begin with all its tokens, and no others.
Snapshots of one sequence share the keys and values of the tokens that they have in common: a conversation is kept once,
whatever its number of turns. What goes on from a snapshot writes to a copy.
"""

from __future__ import annotations

import array
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from interlace.model.state import ModelState

COMPARED = 256  # snapshots that a text is compared with, the last ones used


@dataclass(frozen=True, eq=False)
class Stretch:
    """Keys and values of consecutive tokens, which snapshots share; they are never changed.

    Attributes:
        begin, end: which tokens.
        caches: for each growing cache of the model, keys [end - begin, heads, K] and values.
    """

    begin: int
    end: int
    caches: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(x.nbytes for pair in self.caches for x in pair)


@dataclass(frozen=True)
class Snapshot:
    """The state after some tokens.

    Attributes:
        owner: whose requests it serves.
        tokens: all of them, int32 as bytes.
        state: of one sequence; its growing caches are empty.
        stretches: what these hold, in order, without gaps.
        logits: [vocabulary] after the last token, or None where they are not known.
        number: names it for the states that go on from it; no other snapshot has it.
    """

    owner: str
    tokens: bytes
    state: ModelState
    stretches: tuple[Stretch, ...]
    logits: Tensor | None
    number: int

    @property
    def count(self) -> int:
        """How many tokens it is after."""
        return len(self.tokens) // 4

    @property
    def nbytes(self) -> int:
        """Bytes that it takes for itself, without its stretches."""
        return self.state.nbytes + len(self.tokens) + (0 if self.logits is None else self.logits.nbytes)

    def restored(self, reserve: int) -> ModelState:
        """Return a state to go on from, whose caches have space for `reserve` tokens."""
        state = self.state.one(0, max(reserve, self.count), growing=False)
        caches = state.growing()
        for stretch in self.stretches:
            for cache, pair in zip(caches, stretch.caches, strict=True):
                cache.fill(stretch.begin, pair)
        return state


class Snapshots:
    """Snapshots of one model, up to a number of bytes; the least recently used are forgotten first.

    Attributes:
        limit_bytes: the most bytes of all together.
        nbytes: the bytes of those that are kept; what several share counts once.
    """

    def __init__(self, limit_bytes: int):
        """Begin without any."""
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._kept: OrderedDict[bytes, Snapshot] = OrderedDict()
        self._lengths: dict[str, Counter[int]] = {}  # by owner: how many tokens its snapshots have
        self._users: Counter[Stretch] = Counter()  # how many snapshots share it
        self._numbers: dict[int, bytes] = {}
        self._last = 0

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    @torch.inference_mode()
    def keep(
        self,
        owner: str,
        tokens: Sequence[int],
        state: ModelState,
        row: int = 0,
        *,
        after: int = 0,
        logits: Tensor | None = None,
        spare: bool = False,
    ) -> int:
        """Keep a copy of a state after these tokens for requests of the same owner.

        Args:
            owner: whose requests.
            tokens: all that the sequence has read.
            state, row: the sequence.
            after: the number of the snapshot that the sequence went on from: what is still kept of it is shared.
            logits: [vocabulary] after the tokens, if they are known; they are copied.
            spare: keep it only where twice its bytes fit without forgetting any.

        Returns:
            The number of the snapshot; `after` if there is no space for it.
        """
        before = self._kept.get(self._numbers.get(after, b""))
        shared = () if before is None else before.stretches
        begin, end = 0 if before is None else before.count, len(tokens)
        logits = None if logits is None else logits.clone()
        rest = Snapshot(owner, _bytes(tokens), state.one(row, growing=False), (), logits, self._last + 1)
        grown = (end - begin) * sum(cache.token_bytes for cache in state.growing())
        need = rest.nbytes + grown
        if spare and self.nbytes + 2 * need > self.limit_bytes:
            return after
        if need + sum(stretch.nbytes for stretch in shared) > self.limit_bytes:
            return after
        self._last += 1
        stretches = shared
        if grown:
            new = Stretch(begin, end, tuple(cache.stretch(row, begin, end) for cache in state.growing()))
            stretches = (*shared, new)
        self._add(replace(rest, stretches=stretches))
        self.make_room(self.limit_bytes)
        return self._last

    def find(self, owner: str, tokens: Sequence[int]) -> Snapshot | None:
        """Return the longest of an owner's snapshots that these tokens begin with, or None.

        All of the tokens are never covered by a snapshot without logits.
        """
        given, hashed, done, found = _bytes(tokens), _hash(owner, b""), 0, None
        for length in sorted(self._lengths.get(owner, ())):
            if length > len(tokens):
                break
            hashed.update(given[4 * done : 4 * length])
            done, key = length, hashed.digest()
            kept = self._kept.get(key)
            whole = length == len(tokens)
            if kept is not None and kept.tokens == given[: 4 * length] and not (whole and kept.logits is None):
                found = key, kept
        if found is None:
            return None
        self._kept.move_to_end(found[0])
        return found[1]

    def shared(self, owner: str, tokens: Sequence[int]) -> int:
        """Return how many of these tokens the text of one of an owner's snapshots begins with, at most."""
        given = np.array(tokens, dtype=np.int32)
        mine = [kept for kept in self._kept.values() if kept.owner == owner]
        return max((common(given, np.frombuffer(kept.tokens, np.int32)) for kept in mine[-COMPARED:]), default=0)

    def make_room(self, limit_bytes: int) -> None:
        """Forget the least recently used until the rest takes at most so many bytes."""
        while self._kept and self.nbytes > limit_bytes:
            self._forget(next(iter(self._kept)))

    def _add(self, kept: Snapshot) -> None:
        key = _hash(kept.owner, kept.tokens).digest()
        old = self._kept.get(key)
        self._kept[key], self._numbers[kept.number] = kept, key
        self._kept.move_to_end(key)
        self._lengths.setdefault(kept.owner, Counter())[kept.count] += 1
        self.nbytes += kept.nbytes + sum(s.nbytes for s in kept.stretches if not self._users[s])
        self._users.update(kept.stretches)
        if old is not None:
            self._drop(old)

    def _forget(self, key: bytes) -> None:
        self._drop(self._kept.pop(key))

    def _drop(self, kept: Snapshot) -> None:
        del self._numbers[kept.number]
        self._users.subtract(kept.stretches)
        gone = [stretch for stretch in kept.stretches if not self._users[stretch]]
        for stretch in gone:
            del self._users[stretch]
        self.nbytes -= kept.nbytes + sum(stretch.nbytes for stretch in gone)
        lengths = self._lengths[kept.owner]
        lengths[kept.count] -= 1
        lengths += Counter()  # drops what is 0
        if not lengths:
            del self._lengths[kept.owner]


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
