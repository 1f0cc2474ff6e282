"""The six MAD tasks (Poli et al., arXiv 2403.17844) in their baseline settings, from the authors' descriptions and
code.

The difficulty is the length of a sample, but for memorisation, where it is how many pairs are to be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log2

import numpy as np

from interlace.study.tasks.copying import SelectiveCopy
from interlace.study.tasks.task import Draw, Sample, Task


@dataclass(frozen=True)
class MadRecall(Task):
    """In-context recall: keys and values in turn; a key keeps the value it first had; after a key seen before, its
    value.

        k1 v3 k0 v2 k1 -> v3 k3 v0 k0 -> v2

    With `noise`, that share of pairs gives way to two noise tokens. Training asks at every key seen before; so do
    tests, whose last key is always one.
    """

    vocabulary: int = 16
    noise: float = 0.0
    noise_vocabulary: int = 0
    trained: tuple[int, ...] = (128,)
    tested: tuple[int, ...] = (64, 128, 256)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: keys, values, noise."""
        half = self.vocabulary // 2
        kinds = (("k", half), ("v", half), ("n", self.noise_vocabulary))
        return tuple(f"{letter}{i}" for letter, count in kinds for i in range(count))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform keys, and uniform values for new keys."""
        half = self.vocabulary // 2
        known: dict[int, int] = {}
        tokens: list[int] = []
        labels: dict[int, int] = {}
        for pair in range(difficulty // 2):
            last = pair == difficulty // 2 - 1
            if self.noise and not last and rng.random() < self.noise:
                tokens += (2 * half + rng.integers(self.noise_vocabulary, size=2)).tolist()
                continue
            key = int(rng.choice(list(known))) if last and known else int(rng.integers(half))
            if key in known:
                labels[len(tokens)] = known[key]
            else:
                known[key] = half + int(rng.integers(half))
                if last:  # all that came before was noise
                    labels[len(tokens)] = known[key]
            tokens += [key, known[key]]
        return Sample.of(tokens[:-1], labels)

    def text(self, sample: Sample) -> str:
        """Write keys and values; answers follow arrows."""
        words = self.spell([*sample.tokens, sample.labels[-1]])
        for place in sample.answers:
            words[place] += " ->"
        return " ".join(words)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the values."""
        return 2 / self.vocabulary

    def bits(self, difficulty: int) -> float:
        """Count the sequences of keys alone."""
        return difficulty // 2 * log2(self.vocabulary // 2)


MOTIF = 3  # tokens of the longest key or value


@dataclass(frozen=True)
class FuzzyRecall(Task):
    """Fuzzy in-context recall: keys and values are motifs of one to three tokens; after a key seen before, all of its
    value.

    k1 k3 v1 v2 k2 v4 k1 k3 -> v1 v2
    """

    vocabulary: int = 16
    trained: tuple[int, ...] = (128,)
    tested: tuple[int, ...] = (64, 128, 256)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: parts of keys, parts of values."""
        half = self.vocabulary // 2
        return (*(f"k{i}" for i in range(half)), *(f"v{i}" for i in range(half)))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw motifs of random length until the sample is full, then one that came before."""
        half = self.vocabulary // 2
        known: dict[tuple[int, ...], tuple[int, ...]] = {}
        tokens: list[int] = []
        labels: dict[int, int] = {}
        while True:
            room = difficulty - len(tokens)
            last = room < 4 * MOTIF
            key = self._motif(rng, 0, half)
            if known and (last or rng.random() < 0.5):
                key = list(known)[int(rng.integers(len(known)))]
            value = known.get(key)
            if value is None:
                value = known[key] = self._motif(rng, half, half)
            else:
                for i, part in enumerate(value):
                    labels[len(tokens) + len(key) - 1 + i] = part
            tokens += [*key, *value]
            if last and labels:
                return Sample.of(tokens[:-1], labels)

    def _motif(self, rng: Draw, first: int, count: int) -> tuple[int, ...]:
        return tuple((first + rng.choice(count, size=int(rng.integers(1, MOTIF + 1)), replace=False)).tolist())

    def text(self, sample: Sample) -> str:
        """Write motifs; answers follow arrows."""
        words = self.spell([*sample.tokens, sample.labels[-1]])
        for place in sample.answers:
            if place - 1 not in sample.answers:
                words[place] += " ->"
        return " ".join(words)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the values' parts."""
        return 2 / self.vocabulary

    def bits(self, difficulty: int) -> float:
        """Count first keys and values alone, of one token."""
        return difficulty // (2 * MOTIF) * log2(self.vocabulary // 2)


@dataclass(frozen=True)
class MadSelectiveCopy(SelectiveCopy):
    """Selective copying in MAD's setting: 16 of 256 tokens are letters, of 14 kinds, the others blanks.

    . c . . a . b . | -> c a b
    """

    trained: tuple[int, ...] = (256,)
    tested: tuple[int, ...] = (128, 256, 512)


@dataclass(frozen=True)
class Compression(Task):
    """Compression: a random string is read into one state; each of its tokens is asked for by its place.

        c a d b # 2 -> d

    MAD reads the last state out with a network of its own; here the state must answer through the model, one question
    for a sample. A place beyond the lengths trained on is a token that no training sample holds.
    """

    vocabulary: int = 16
    longest: int = 128
    trained: tuple[int, ...] = (32,)
    tested: tuple[int, ...] = (16, 32, 64)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: letters, the mark, places."""
        letters = (chr(ord("a") + i) for i in range(self.vocabulary))
        return (*letters, "#", *(str(i) for i in range(self.longest)))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform letters and a uniform place."""
        letters = rng.integers(self.vocabulary, size=difficulty).tolist()
        place = int(rng.integers(difficulty))
        return Sample.of([*letters, self.vocabulary, self.vocabulary + 1 + place], {difficulty + 1: letters[place]})

    def text(self, sample: Sample) -> str:
        """Write string, mark, place, letter."""
        return f"{' '.join(self.spell(sample.tokens))} -> {self.words[sample.labels[-1]]}"

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the letters."""
        return 1 / self.vocabulary

    def bits(self, difficulty: int) -> float:
        """Count all strings."""
        return difficulty * log2(self.vocabulary)


@cache
def dictionary(pairs: int) -> np.ndarray:
    """Return the value of each key, the same for every sample and every model."""
    return np.random.default_rng([0x3A9, pairs]).integers(pairs, size=pairs)


@dataclass(frozen=True)
class Memorization(Task):
    """Memorisation: a fixed dictionary, learnt into the weights: after a key and a blank, its value.

        k17 _ -> v3 k4 _ -> v250

    The same pairs are trained on and tested: nothing can be inferred from the context. Several keys may have the same
    value.
    """

    pairs: int = 256
    length: int = 32
    trained: tuple[int, ...] = (256,)
    tested: tuple[int, ...] = (256,)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: keys, the blank, values."""
        return (*(f"k{i}" for i in range(self.pairs)), "_", *(f"v{i}" for i in range(self.pairs)))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform keys of the dictionary's first `difficulty`."""
        keys = rng.integers(difficulty, size=self.length // 2).tolist()
        values = dictionary(self.pairs)
        tokens = [x for key in keys for x in (key, self.pairs)]
        return Sample.of(tokens, {2 * i + 1: self.pairs + 1 + int(values[key]) for i, key in enumerate(keys)})

    def chance(self, difficulty: int) -> float:
        """Return the score of always answering the most frequent value."""
        return float(np.bincount(dictionary(self.pairs)[:difficulty]).max() / difficulty)

    def bits(self, difficulty: int) -> float:
        """Count those of one pair: the dictionary is what is learnt, and tests are not kept apart."""
        return log2(self.pairs)
