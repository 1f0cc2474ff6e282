"""Make batches as a pure function of (seed, step): resuming needs a number only, and worker counts cannot matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interlace.base.errors import DataError
from interlace.base.segments import Segments
from interlace.data.tokens import TokenSplit

SEGMENTS_OF_A_PAIR = 3  # its prompt, its better answer, its worse one
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
        pairs: int64 [pairs], where the batch is of pairs of answers: their places in the split. `tokens` holds the
            prompt, the better and the worse answer of each, three segments in turn; `targets` are the tokens themselves
            where an assistant wrote them, and IGNORE elsewhere.
        places: int64 [total], where each token lies in the split; None where there are several splits, and of pairs.
    """

    tokens: Tensor
    targets: Tensor
    segments: Segments
    weights: Tensor | None = None
    whole: float | None = None
    share: float = 1.0
    pairs: Tensor | None = None
    places: Tensor | None = None

    @property
    def counted(self) -> float:
        """How many targets stand for a token, or the sum of their weights; of pairs, how many they are."""
        if self.pairs is not None:
            return float(len(self.pairs))
        kept = self.targets != IGNORE
        return float(kept.sum() if self.weights is None else self.weights.double()[kept].sum())


def parts(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch, which lies on the CPU, into parts of about equally many tokens; sequences and pairs stay whole.

    A part that would be empty gets one token that is no target. Rows of one length are cut where rows end if `count`
    divides their number.
    """
    if count == 1:
        return [batch]
    offsets, total, whole = batch.segments.offsets, batch.segments.total, batch.counted
    group = 1 if batch.pairs is None else SEGMENTS_OF_A_PAIR
    cuts = [group * int((offsets[::group] - total * i // count).abs().argmin()) for i in range(count + 1)]
    found = []
    for a, b in pairwise(cuts):
        pairs = None if batch.pairs is None else batch.pairs[a // group : b // group]
        if a == b:
            nothing = torch.full((1,), IGNORE), Segments.from_lengths([1])
            weights = None if batch.weights is None else torch.zeros(1)
            places = None if batch.places is None else batch.places[:1]
            found.append(Batch(batch.tokens[:1], *nothing, weights, whole, 0.0, pairs, places))
            continue
        own = slice(int(offsets[a]), int(offsets[b]))
        segments = Segments.from_offsets(offsets[a : b + 1] - offsets[a])
        weights, places = (None if x is None else x[own] for x in (batch.weights, batch.places))
        share = (own.stop - own.start) / total
        found.append(Batch(batch.tokens[own], batch.targets[own], segments, weights, whole, share, pairs, places))
    return found


def few(targets: Tensor) -> bool:
    """Return whether less than half of the targets, which lie on the CPU, stand for a token."""
    return 2 * int((targets != IGNORE).sum()) < targets.shape[0]


def batches(
    split: TokenSplit, rows: int, length: int, seed: int, packing: str = "rows", long: str = "cut"
) -> Batches | Packs:
    """Return batches of texts, of conversations, or of pairs of answers, as the split holds them.

    Args:
        packing: "rows" of one length, or whole "documents"; conversations are always whole.
        long: what happens to a document of more than `length` tokens where documents are packed: "cut" or "refuse".
    """
    if split.pairs is not None:
        return Pairs(split, rows, length, seed)
    if split.learnt is not None:
        return Packs(split, *_conversations(split, length), rows, length, seed)
    if packing == "documents":
        return Packs(split, *_documents(split, length, long), rows, length, seed)
    return Batches(split, rows, length, seed)


def _conversations(split: TokenSplit, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (first token, tokens) of each conversation with an answer in its first `length` tokens, cut there."""
    assert split.learnt is not None
    starts, sizes = np.asarray(split.borders[:-1]), np.minimum(np.diff(split.borders), length)
    learnt = np.array([split.learnt[s + 1 : s + n].any() for s, n in zip(starts, sizes, strict=True)], dtype=bool)
    if not learnt.any():
        raise DataError(f"data: no conversation has an answer within its first {length} tokens; raise data.length")
    return starts[learnt], sizes[learnt]


def _documents(split: TokenSplit, length: int, long: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (first token, tokens) of each document; a longer one is cut into several of `length` tokens."""
    starts, sizes = np.asarray(split.borders[:-1]), np.diff(split.borders)
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    if long == "refuse" and (sizes > length).any():
        most = int(sizes.max())
        raise DataError(
            f"data.length: {int((sizes > length).sum()):,} documents have more than {length} tokens, the longest "
            f'{most:,}; raise data.length, or set data.long = "cut"'
        )
    pieces = -(-sizes // length)
    inside = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.repeat(starts, pieces) + inside * length, np.minimum(length, np.repeat(sizes, pieces) - inside * length)


class Packs:
    """Whole documents or conversations, packed end to end: a batch holds as many as fit into rows x length tokens.

    Each is a segment of its own. Of conversations, only what an assistant wrote is a target, and one that has more than
    `length` tokens is cut at its end; of a text that was cut, the last token's target is the first of the next piece.
    Each epoch is shuffled and packed anew, so a batch is a function of (seed, step).

    Memory: 24 bytes for each document and 8 for each epoch that has begun; only one epoch's packing is kept.
    """

    def __init__(self, split: TokenSplit, starts: np.ndarray, sizes: np.ndarray, rows: int, length: int, seed: int):
        """Prepare batches of at most rows x length tokens; starts and sizes are those of the documents' tokens."""
        self.split, self.rows, self.length, self.seed = split, rows, length, seed
        self.starts, self.sizes = starts, sizes
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
        tokens, targets, lengths, weights, places = [], [], [], [], []
        for document in self.chosen(step):
            start, size = int(self.starts[document]), int(self.sizes[document])
            read, goal = self._document(start, size)
            places.append(np.arange(start, start + size))
            tokens.append(read)
            targets.append(goal)
            lengths.append(len(read))
            if self.split.weights is not None:
                weights.append(np.append(self.split.weights[start + 1 : start + size], np.float32(0)))
        return Batch(
            torch.from_numpy(np.concatenate(tokens)),
            torch.from_numpy(np.concatenate(targets)),
            Segments.from_lengths(lengths),
            torch.from_numpy(np.concatenate(weights)) if weights else None,
            places=torch.from_numpy(np.concatenate(places)),
        )

    def chosen(self, step: int) -> np.ndarray:
        """Return which documents the batch of this step holds."""
        epoch = 0
        while step >= (count := self._count(epoch)):
            step -= count
            epoch += 1
        self._pack(epoch)
        return self._order[self._ends[step - 1] if step else 0 : self._ends[step]]

    def _document(self, start: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and targets."""
        learnt = self.split.learnt
        if learnt is not None:
            read = self.split.read(start, start + size)
            return read, np.append(np.where(learnt[start + 1 : start + size], read[1:], IGNORE), IGNORE)
        end = int(self.split.borders[np.searchsorted(self.split.borders, start, side="right")])
        more = start + size < end
        read = self.split.read(start, start + size + more)
        return read[:size], read[1:] if more else np.append(read[1:], IGNORE)

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
        self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.sizes))
        reached = np.cumsum(self.sizes[self._order])
        ends, before, first = [], 0, 0
        while before < reached[-1]:
            first = max(first + 1, int(np.searchsorted(reached, before + self.tokens, side="right")))
            ends.append(first)
            before = int(reached[first - 1])
        self._ends, self._epoch = np.array(ends), epoch


class Pairs(Packs):
    """Pairs of answers, packed: a batch holds as many as fit into rows x length tokens, a prompt counted twice.

    A batch holds one at least, of up to two times `length` tokens. A pair of which a prompt with an answer has more
    than `length` tokens is left out.

    Attributes:
        left_out: how many are.
        documents: int64, the places in the split of those that are read.
    """

    def __init__(self, split: TokenSplit, rows: int, length: int, seed: int):
        """Prepare batches.

        Raises:
            DataError: no pair is short enough.
        """
        assert split.pairs is not None
        starts, sizes = np.asarray(split.borders[:-1]), np.diff(split.borders)
        prompts, better = split.pairs.astype(np.int64).T
        fits = np.maximum(prompts + better, sizes - better) <= length
        if not fits.any():
            raise DataError(
                f"data: none of {len(fits):,} pairs has a prompt and an answer within {length} tokens; raise "
                "data.length"
            )
        self.left_out, self.documents = int((~fits).sum()), np.flatnonzero(fits)
        super().__init__(split, starts[fits], (sizes + prompts)[fits], rows, length, seed)

    def batch(self, step: int) -> Batch:
        """The batch of this step, counted from 0."""
        return self.of(self.documents[self.chosen(step)])

    def of(self, places: np.ndarray) -> Batch:
        """The batch of some pairs, by their places in the split."""
        assert self.split.pairs is not None
        assert self.split.learnt is not None
        tokens, targets, lengths = [], [], []
        for place in places.tolist():
            start, stop = (int(x) for x in self.split.borders[place : place + 2])
            prompt, better = (int(x) for x in self.split.pairs[place])
            read = self.split.read(start, stop)
            tokens.append(read)
            targets.append(np.where(self.split.learnt[start:stop], read, IGNORE))
            lengths += [prompt, better, stop - start - prompt - better]
        return Batch(
            torch.from_numpy(np.concatenate(tokens)),
            torch.from_numpy(np.concatenate(targets)),
            Segments.from_lengths(lengths),
            pairs=torch.from_numpy(places.astype(np.int64)),
        )


class Piece(NamedTuple):
    """A piece of a document: its tokens, their targets, and where the first lies in the split."""

    tokens: np.ndarray
    targets: np.ndarray
    first: int


def of_rows(rows: Iterable[Sequence[Piece]], placed: bool = True) -> Batch:
    """Return the batch of some rows, each of which is given by its pieces; placed: whether all are of one split."""
    pieces = [piece for row in rows for piece in row]
    places = np.concatenate([np.arange(piece.first, piece.first + len(piece.tokens)) for piece in pieces])
    return Batch(
        torch.from_numpy(np.concatenate([piece.tokens for piece in pieces])),
        torch.from_numpy(np.concatenate([piece.targets for piece in pieces])),
        Segments.from_lengths([len(piece.tokens) for piece in pieces]),
        places=torch.from_numpy(places) if placed else None,
    )


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
        return of_rows(self.row(epoch, n) for n in range(index * self.rows, (index + 1) * self.rows))

    def row(self, epoch: int, index: int) -> list[Piece]:
        """The pieces of documents in a row of an epoch, by its place in shuffled order."""
        self._shuffle(epoch)
        return self._row(int(self._row_order[index]))

    def _shuffle(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        draw = np.random.default_rng([self.seed, epoch])
        order = draw.permutation(len(self.split.borders) - 1)
        self._starts = self.split.borders[order]
        self._ends = np.cumsum(np.diff(self.split.borders)[order])
        self._row_order = draw.permutation(self.rows_per_epoch)
        self._epoch = epoch

    def _row(self, row: int) -> list[Piece]:
        """The pieces of documents in this row."""
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
            pieces.append(Piece(read[:size], goal, first))
            place += size
        return pieces
