"""Tasks of recall by key: multi-query associative recall, and needles in a haystack."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import numpy as np

from interlace.study.tasks.task import Draw, Sample, Task

NEAR = 0.01  # the power law of where a key is asked for again: near the pairs


@dataclass(frozen=True)
class MultiQueryRecall(Task):
    """Multi-query associative recall (MQAR): pairs of key and value, then each key again, among filler; after each,
    its value. The difficulty is how many pairs there are; a sample is eight times as long.

        k3 v1 k0 v7 . . k0 -> v7 . . . k3 -> v1 . .

    Source: Arora et al., Zoology, arXiv 2312.04927, and its code: keys and values without replacement, the places of
    the questions drawn with p(i) ~ i^-0.99.
    """

    vocabulary: int = 512
    trained: tuple[int, ...] = (16,)
    tested: tuple[int, ...] = (4, 8, 16, 32)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: filler, keys, values."""
        half = self.vocabulary // 2
        return (".", *(f"k{i}" for i in range(half - 1)), *(f"v{i}" for i in range(half)))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw pairs, then their keys among filler."""
        half = self.vocabulary // 2
        keys = (1 + rng.choice(half - 1, size=difficulty, replace=False)).tolist()
        values = (half + rng.choice(half, size=difficulty, replace=False)).tolist()
        tokens = [x for pair in zip(keys, values, strict=True) for x in pair]
        slots = 3 * difficulty
        shares = (1.0 + np.arange(slots)) ** (NEAR - 1)
        places = rng.choice(slots, size=difficulty, replace=False, p=shares / shares.sum()).tolist()
        tokens += [0] * (2 * slots)
        labels = {}
        for place, key, value in zip(places, keys, values, strict=True):
            tokens[2 * difficulty + 2 * place] = key
            labels[2 * difficulty + 2 * place] = value
        return Sample.of(tokens, labels)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the values."""
        return 2 / self.vocabulary

    def bits(self, difficulty: int) -> float:
        """Count the ordered choices of values alone."""
        return difficulty * log2(self.vocabulary // 2 - difficulty)


@dataclass(frozen=True)
class Needle(Task):
    """A needle in a haystack: somewhere in filler stands a marked key with its value; at the end the key is asked
    for. The difficulty is the length of the haystack, and with several keys (`needles`) all but one of them distract.

        w4 w1 w1 ! k2 v5 w0 w3 ? k2 -> v5

    Source: RULER (Hsieh et al., arXiv 2404.06654): single (S-NIAH-1) and multi-key (MK-1), with words in place of text.
    """

    needles: int = 1
    keys: int = 32
    values: int = 32
    filler: int = 32
    trained: tuple[int, ...] = (64,)
    tested: tuple[int, ...] = (32, 64, 128, 256)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: marks, keys, values, filler."""
        kinds = (("k", self.keys), ("v", self.values), ("w", self.filler))
        return ("!", "?", *(f"{letter}{i}" for letter, count in kinds for i in range(count)))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform filler and needles at uniform places, one of which is asked for."""
        keys = (2 + rng.choice(self.keys, size=self.needles, replace=False)).tolist()
        values = (2 + self.keys + rng.integers(self.values, size=self.needles)).tolist()
        hay = (2 + self.keys + self.values + rng.integers(self.filler, size=difficulty)).tolist()
        tokens = []
        places = sorted(rng.choice(difficulty + 1, size=self.needles, replace=False).tolist())
        for start, end, needle in zip([0, *places], [*places, difficulty], range(self.needles + 1), strict=True):
            tokens += hay[start:end]
            if needle < self.needles:
                tokens += [0, keys[needle], values[needle]]
        asked = int(rng.integers(self.needles))
        tokens += [1, keys[asked]]
        return Sample.of(tokens, {len(tokens) - 1: values[asked]})

    def text(self, sample: Sample) -> str:
        """Write haystack, question, answer."""
        return f"{' '.join(self.spell(sample.tokens))} -> {self.words[sample.labels[-1]]}"

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the values."""
        return 1 / self.values

    def bits(self, difficulty: int) -> float:
        """Count the haystacks alone."""
        return difficulty * log2(self.filler)
