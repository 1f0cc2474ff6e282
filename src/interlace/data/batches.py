"""Make batches as a pure function of (seed, step): resuming needs a number only, and worker counts cannot matter."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from interlace.base.errors import DataError
from interlace.base.segments import Segments
from interlace.data.tokens import TokenSplit

IGNORE = -100  # target of a token that has no next token in its document


@dataclass(frozen=True)
class Batch:
    """Tokens to read and to predict.

    Attributes:
        tokens: int64 [total].
        targets: int64 [total], the next token of the same document, or IGNORE.
        segments: one per piece of a document.
        weights: float32 [total], how much each target counts; None where all count the same.
        whole: where this is a part of a step's batch, the targets of all its parts, or the sum of their weights; None
            where this is all of it.
        share: of the tokens of the step's batch.
    """

    tokens: Tensor
    targets: Tensor
    segments: Segments
    weights: Tensor | None = None
    whole: float | None = None
    share: float = 1.0

    @property
    def counted(self) -> float:
        """How many targets stand for a token, or the sum of their weights."""
        kept = self.targets != IGNORE
        return float(kept.sum() if self.weights is None else self.weights.double()[kept].sum())


def parts(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch, which lies on the CPU, into parts of about equally many tokens; sequences stay whole.

    A part that would be empty gets one token that is no target. Rows of one length are cut where rows end if `count`
    divides their number.
    """
    if count == 1:
        return [batch]
    offsets, total, whole = batch.segments.offsets, batch.segments.total, batch.counted
    cuts = [int((offsets - total * i // count).abs().argmin()) for i in range(count + 1)]
    found = []
    for a, b in pairwise(cuts):
        if a == b:
            nothing = torch.full((1,), IGNORE), Segments.from_lengths([1])
            weights = None if batch.weights is None else torch.zeros(1)
            found.append(Batch(batch.tokens[:1], *nothing, weights, whole, 0.0))
            continue
        own = slice(int(offsets[a]), int(offsets[b]))
        segments = Segments.from_offsets(offsets[a : b + 1] - offsets[a])
        weights = None if batch.weights is None else batch.weights[own]
        share = (own.stop - own.start) / total
        found.append(Batch(batch.tokens[own], batch.targets[own], segments, weights, whole, share))
    return found


def few(targets: Tensor) -> bool:
    """Return whether less than half of the targets, which lie on the CPU, stand for a token."""
    return 2 * int((targets != IGNORE).sum()) < targets.shape[0]


def batches(split: TokenSplit, rows: int, length: int, seed: int) -> Batches | Conversations:
    """Return batches of texts, or of conversations, as the split holds them."""
    kind = Batches if split.learnt is None else Conversations
    return kind(split, rows, length, seed)


class Conversations:
    """Whole conversations, packed end to end: a batch holds as many as fit into rows x length tokens.

    Each is a segment of its own, and only what an assistant wrote is a target. One that has more than `length` tokens
    is cut at its end. Each epoch is shuffled and packed anew, so a batch is a function of (seed, step).

    Memory: 32 bytes for each conversation and 8 for each epoch that has begun; only one epoch's packing is kept.
    """

    def __init__(self, split: TokenSplit, rows: int, length: int, seed: int):
        """Prepare batches of at most rows x length tokens.

        Raises:
            DataError: no conversation has an answer within its first `length` tokens.
        """
        assert split.learnt is not None
        self.split, self.rows, self.length, self.seed = split, rows, length, seed
        sizes = np.minimum(np.diff(split.borders), length)
        starts = split.borders[:-1]
        learnt = np.array([split.learnt[s + 1 : s + n].any() for s, n in zip(starts, sizes, strict=True)], dtype=bool)
        self.useful = np.flatnonzero(learnt)
        self.sizes = sizes
        self.cut = int((np.diff(split.borders) > length).sum())
        if not len(self.useful):
            raise DataError(f"data: no conversation has an answer within its first {length} tokens; raise data.length")
        self._counts: list[int] = []  # batches of each epoch, as far as is known
        self._epoch = -1
        self._order = self._ends = np.zeros(0, dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens per batch, at most."""
        return self.rows * self.length

    @property
    def per_epoch(self) -> int:
        """Batches in the first pass over the data."""
        return self._count(0)

    def batch(self, step: int) -> Batch:
        """The batch of this step, counted from 0."""
        epoch = 0
        while step >= (count := self._count(epoch)):
            step -= count
            epoch += 1
        self._pack(epoch)
        tokens, targets, lengths = [], [], []
        for document in self._order[self._ends[step - 1] if step else 0 : self._ends[step]]:
            start, size = int(self.split.borders[document]), int(self.sizes[document])
            read = self.split.read(start, start + size)
            assert self.split.learnt is not None
            goal = np.where(self.split.learnt[start + 1 : start + size], read[1:], IGNORE)
            tokens.append(read)
            targets.append(np.append(goal, IGNORE))
            lengths.append(size)
        return Batch(
            torch.from_numpy(np.concatenate(tokens)),
            torch.from_numpy(np.concatenate(targets)),
            Segments.from_lengths(lengths),
        )

    def _count(self, epoch: int) -> int:
        """Return the number of batches of an epoch; the epoch is packed if it is not known."""
        while len(self._counts) <= epoch:
            self._pack(len(self._counts))
            self._counts.append(len(self._ends))
        return self._counts[epoch]

    def _pack(self, epoch: int) -> None:
        """The documents of an epoch in shuffled order; each batch ends before the first that does not fit."""
        if epoch == self._epoch:
            return
        self._order = np.random.default_rng([self.seed, epoch]).permutation(self.useful)
        ends, size = [], 0
        for place, more in enumerate(self.sizes[self._order].tolist()):
            if size and size + more > self.tokens:
                ends.append(place)
                size = 0
            size += more
        self._ends = np.array([*ends, len(self._order)])
        self._epoch = epoch


class Batches:
    """Rows of `length` tokens from documents in shuffled order; each epoch is shuffled anew.

    The documents of an epoch lie end to end; rows are cut from that axis and drawn in shuffled order. A segment
    ends where its document or its row ends, so nothing is padded and no document sees another.
    """

    def __init__(self, split: TokenSplit, rows: int, length: int, seed: int):
        """Prepare batches of rows x length tokens.

        Raises:
            DataError: the split has fewer tokens than one batch.
        """
        self.split, self.rows, self.length, self.seed = split, rows, length, seed
        self.rows_per_epoch = (split.count - 1) // length
        if self.rows_per_epoch < rows:
            raise DataError(
                f"data: a batch of {rows} rows of {length} tokens needs {rows * length + 1:,} tokens, but the split "
                f"has {split.count:,}; give more text, or lower data.rows or data.length"
            )
        self._epoch = -1
        self._row_order = self._starts = self._ends = np.zeros(0, dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens per batch."""
        return self.rows * self.length

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return self.rows_per_epoch // self.rows

    def batch(self, step: int) -> Batch:
        """The batch of this step, counted from 0."""
        epoch, index = divmod(step, self.per_epoch)
        self._shuffle(epoch)
        tokens, targets, lengths = [], [], []
        for row in self._row_order[index * self.rows : (index + 1) * self.rows]:
            for piece, goal in self._row(int(row)):
                tokens.append(piece)
                targets.append(goal)
                lengths.append(len(piece))
        return Batch(
            torch.from_numpy(np.concatenate(tokens)),
            torch.from_numpy(np.concatenate(targets)),
            Segments.from_lengths(lengths),
        )

    def _shuffle(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        draw = np.random.default_rng([self.seed, epoch])
        order = draw.permutation(len(self.split.borders) - 1)
        self._starts = self.split.borders[order]
        self._ends = np.cumsum(np.diff(self.split.borders)[order])
        self._row_order = draw.permutation(self.rows_per_epoch)
        self._epoch = epoch

    def _row(self, row: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(tokens, targets) of each piece of a document in this row."""
        pieces = []
        place, stop = row * self.length, (row + 1) * self.length
        while place < stop:
            document = int(np.searchsorted(self._ends, place, side="right"))
            end = int(self._ends[document])
            begin = int(self._ends[document - 1]) if document else 0
            first = int(self._starts[document]) + place - begin
            size = min(end, stop) - place
            more = place + size < end  # the document goes on in another row: its next token is known
            read = self.split.read(first, first + size + more)
            goal = read[1:] if more else np.append(read[1:], IGNORE)
            pieces.append((read[:size], goal))
            place += size
        return pieces
