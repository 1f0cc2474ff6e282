"""Batches whose rows come from several sources by weight, as a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from interlace.base.errors import DataError
from interlace.data.batches import Batch, Batches, Piece, of_rows
from interlace.data.tokens import TokenSplit

BLOCK = 64  # rows that are shared out at a time, as the weights say
UNLIMITED = int(np.iinfo(np.int64).max)  # rows


@dataclass(frozen=True)
class Ingredient:
    """One source of a mixture.

    Attributes:
        name: by which messages call it.
        split: its tokens.
        weight: its share of the rows, beside the other weights.
        epochs: how often it is read at most; None for any number.
    """

    name: str
    split: TokenSplit
    weight: float
    epochs: float | None = None


@dataclass(frozen=True)
class _Era:
    """A time in which the same sources are read.

    Attributes:
        first: its first block.
        before: rows of each source that were taken before, int64 [sources].
        weights: of each source, 0 for one that has ended.
    """

    first: int
    before: np.ndarray
    weights: Sequence[Fraction]


class Mixture:
    """Rows of `length` tokens from several sources.

    Rows are shared out in blocks of 64: after each, every source has had as many as its weight says, to a row or two,
    counted from the beginning; the order in a block is shuffled. A source's rows are those of `Batches`, epoch by
    epoch. One that has been read as often as it may ends, and its weight goes to the others.
    """

    def __init__(self, ingredients: Sequence[Ingredient], rows: int, length: int, seed: int):
        """Prepare batches of rows x length tokens.

        Raises:
            DataError: a source has fewer tokens than one row, or holds conversations.
        """
        self.ingredients, self.rows, self.length, self.seed = list(ingredients), rows, length, seed
        self._sources = []
        for number, one in enumerate(self.ingredients):
            if one.split.learnt is not None:
                raise DataError(f"data.mixture.{one.name}: holds conversations; a mixture is of texts")
            if one.split.count <= length:
                raise DataError(
                    f"data.mixture.{one.name}: has {one.split.count:,} tokens, and a row takes {length + 1:,}; give "
                    "more text, or lower data.length"
                )
            self._sources.append(Batches(one.split, 1, length, _seed(seed, number)))
        limits = []
        for one, source in zip(self.ingredients, self._sources, strict=True):
            limits.append(UNLIMITED if one.epochs is None else int(one.epochs * source.rows_per_epoch))
            if not limits[-1]:
                raise DataError(
                    f"data.mixture.{one.name}.epochs: {one.epochs:g} of {source.rows_per_epoch:,} rows is none; "
                    "raise it"
                )
        self._limits = np.array(limits)
        self._weights = [Fraction(one.weight) for one in self.ingredients]
        self._eras = list(self._all_eras())
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def tokens(self) -> int:
        """Tokens per batch."""
        return self.rows * self.length

    def batch(self, step: int) -> Batch:
        """The batch of this step, counted from 0.

        Raises:
            DataError: all sources have ended.
        """
        rows = (self._row(n) for n in range(step * self.rows, (step + 1) * self.rows))
        return of_rows(rows, placed=len(self._sources) == 1)

    def _row(self, number: int) -> list[Piece]:
        block, inside = divmod(number, BLOCK)
        if self._block is None or self._block[0] != block:
            self._block = (block, *self._drawn(block))
        _, order, places = self._block
        if inside >= len(order):
            raise DataError(
                f"data.mixture: all sources end after {self.steps:,} steps; give more text, more epochs, or lower "
                "train.tokens"
            )
        source = int(order[inside])
        epoch, index = divmod(int(places[inside]), self._sources[source].rows_per_epoch)
        return self._sources[source].row(epoch, index)

    def _drawn(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each row of a block, and which of that source's rows it is."""
        before, after = self._taken(block), self._taken(block + 1)
        order = np.repeat(np.arange(len(before)), after - before)
        np.random.default_rng([self.seed, block]).shuffle(order)
        places = np.zeros(len(order), dtype=np.int64)
        for source, first in enumerate(before):
            own = order == source
            places[own] = first + np.arange(own.sum())
        return order, places

    def _taken(self, block: int) -> np.ndarray:
        """Return how many rows of each source lie before a block, int64 [sources]."""
        return self._at(next(era for era in reversed(self._eras) if era.first <= block), block)

    def _all_eras(self) -> Iterator[_Era]:
        """Yield the eras one by one; in the block between two of them a source ends, and others fill it."""
        era = _Era(0, np.zeros(len(self._weights), dtype=np.int64), self._weights)
        while True:
            yield era
            if not any(era.weights):
                return
            last = self._last_block(era)
            if last is None:
                return
            before, weights = self._at(era, last), era.weights
            taken = np.minimum(self._at(era, last + 1), self._limits)
            while any(weights):
                ended = taken >= self._limits
                weights = [Fraction(0) if end else w for w, end in zip(weights, ended, strict=True)]
                if not (left := BLOCK - int((taken - before).sum())):
                    break
                taken = np.minimum(taken + shared_out(left, weights), self._limits)
            era = _Era(last + 1, taken, weights)

    @staticmethod
    def _at(era: _Era, block: int) -> np.ndarray:
        return era.before + shared_out((block - era.first) * BLOCK, era.weights)

    def _last_block(self, era: _Era) -> int | None:
        """Return the block of an era in which its first source ends; None if none does."""
        limits = np.array([m if w else UNLIMITED for m, w in zip(self._limits, era.weights, strict=True)])
        if (limits == UNLIMITED).all():
            return None
        low, high = era.first, era.first + 1
        while not (self._at(era, high) >= limits).any():
            low, high = high, 2 * high - era.first
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if (self._at(era, middle) >= limits).any() else (middle, high)
        return low

    @property
    def steps(self) -> int:
        """How many batches there are, where every source ends; a very large number else."""
        read = [int(most) for most, weight in zip(self._limits, self._weights, strict=True) if weight]
        return (UNLIMITED if UNLIMITED in read else sum(read)) // self.rows

    def ends(self, steps: int) -> list[tuple[str, int]]:
        """(name, step) of each source whose last row is in that step, counted from 1, of so many."""
        found = []
        for before, after in pairwise(self._eras):
            order = self._drawn(after.first - 1)[0]
            for source, (then, now) in enumerate(zip(before.weights, after.weights, strict=True)):
                last = (after.first - 1) * BLOCK + int(np.flatnonzero(order == source)[-1]) if then and not now else -1
                if 0 <= last < steps * self.rows:
                    found.append((self.ingredients[source].name, last // self.rows + 1))
        return found


def shared_out(rows: int, weights: Sequence[Fraction]) -> np.ndarray:
    """Return how many of the first `rows` rows each source has, int64 [sources]: its share, to a row or two.

    The first source has its share rounded, the second its share of what that leaves, and so on: no number falls as
    rows are added.
    """
    found = np.zeros(len(weights), dtype=np.int64)
    rest = sum(weights, Fraction(0))
    for source, weight in enumerate(weights):
        if weight:
            share = weight / rest
            found[source] = (2 * rows * share.numerator + share.denominator) // (2 * share.denominator)
            rows, rest = rows - int(found[source]), rest - weight
    return found


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def joined(splits: Sequence[TokenSplit]) -> TokenSplit:
    """Return several splits as one, one after the other."""
    shards = [shard for split in splits for shard in split.shards]
    starts = np.cumsum([0, *(s.shape[0] for s in shards)])
    borders, begin = [np.zeros(1, dtype=np.int64)], 0
    for split in splits:
        borders.append(np.asarray(split.borders[1:]) + begin)
        begin += split.count
    return TokenSplit(shards, starts, np.concatenate(borders))
