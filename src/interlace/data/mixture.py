"""Batches whose rows come from several sources by weight, as a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interlace.base.errors import DataError
from interlace.data.batches import Batch, Batches, of_rows
from interlace.data.tokens import TokenSplit

BLOCK = 64  # rows that are shared out at a time, as the weights say


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


class Mixture:
    """Rows of `length` tokens from several sources.

    Rows are shared out in blocks of 64: in each, every source has as many as its weight says, to a row, counted from
    the beginning; their order is shuffled. A source's rows are those of `Batches`, epoch by epoch. One that has been
    read as often as it may ends, and its weight goes to the others.
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
        limits = [
            None if one.epochs is None else int(one.epochs * source.rows_per_epoch)
            for one, source in zip(self.ingredients, self._sources, strict=True)
        ]
        for one, source, limit in zip(self.ingredients, self._sources, limits, strict=True):
            if limit == 0:
                raise DataError(
                    f"data.mixture.{one.name}.epochs: {one.epochs:g} of {source.rows_per_epoch:,} rows is none; "
                    "raise it"
                )
        self._limits = np.array([np.iinfo(np.int64).max if n is None else n for n in limits])
        self._weights = np.array([one.weight for one in self.ingredients], dtype=np.float64)
        self._taken = [np.zeros(len(limits), dtype=np.int64)]  # rows of each source before each block
        self._due = np.zeros(len(limits))  # what the weights have promised so far
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
        return of_rows(self._row(n) for n in range(step * self.rows, (step + 1) * self.rows))

    def _row(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
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
        while len(self._taken) <= block + 1:
            self._share_out()
        before, after = self._taken[block], self._taken[block + 1]
        order = np.repeat(np.arange(len(before)), after - before)
        np.random.default_rng([self.seed, block]).shuffle(order)
        places = np.zeros(len(order), dtype=np.int64)
        for source, first in enumerate(before):
            own = order == source
            places[own] = first + np.arange(own.sum())
        return order, places

    def _share_out(self) -> None:
        """Share the rows of the next block out among the sources that have not ended."""
        taken = self._taken[-1].copy()
        left = BLOCK
        while left and (open_ := (taken < self._limits) & (self._weights > 0)).any():
            shares = np.where(open_, self._weights, 0)
            wanted = shares / shares.sum() * left
            self._due += wanted
            more = np.clip(np.floor(self._due - taken + 1e-9), 0, self._limits - taken).astype(np.int64)
            rest = left - int(more.sum())
            for source in np.argsort(-(self._due - taken - more), kind="stable"):  # the largest remainders first
                if rest > 0 and open_[source] and taken[source] + more[source] < self._limits[source]:
                    more[source] += 1
                    rest -= 1
            taken += more
            left -= int(more.sum())
            self._due = np.where(taken < self._limits, self._due, taken)
            if not more.any():
                break
        self._taken.append(taken)

    @property
    def steps(self) -> int:
        """How many batches there are, where every source ends; a very large number else."""
        open_ = (self._limits == np.iinfo(np.int64).max) & (self._weights > 0)
        rows = int(self._limits[self._weights > 0].sum()) if not open_.any() else np.iinfo(np.int64).max
        return int(rows // self.rows)

    def ends(self, steps: int) -> list[tuple[str, int]]:
        """(name, step) of each source whose last row is in that step, counted from 1, of so many."""
        self._drawn(max(0, steps * self.rows - 1) // BLOCK)
        found = []
        for source, limit in enumerate(self._limits):
            block = next((b for b, taken in enumerate(self._taken[1:]) if taken[source] >= limit), None)
            if block is None or not self._weights[source]:
                continue
            last = block * BLOCK + int(np.flatnonzero(self._drawn(block)[0] == source)[-1])
            if last < steps * self.rows:
                found.append((self.ingredients[source].name, last // self.rows + 1))
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
