"""Word problems over finite groups: after each element, the product so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from math import log2
from typing import ClassVar, Literal

import numpy as np

from interlace.base.errors import ConfigError
from interlace.study.tasks.task import Draw, Sample, Task

SYMMETRIC = {"S3": 3, "S5": 5, "A5": 5}
CYCLIC = {"Z60": 60}


def is_even(permutation: tuple[int, ...]) -> bool:
    """Return whether a permutation takes an even number of swaps."""
    pairs = [(i, j) for j in range(len(permutation)) for i in range(j)]
    return sum(permutation[i] > permutation[j] for i, j in pairs) % 2 == 0


@cache
def elements(group: str) -> tuple[tuple[int, ...], ...]:
    """Return a group's permutations in order, the identity first."""
    found = permutations(range(SYMMETRIC[group]))
    return tuple(p for p in found if group != "A5" or is_even(p))


@cache
def products(group: str) -> np.ndarray:
    """Return int64 [G, G]: row x, column y is x and then y: the permutation that sends i to y[x[i]]; or a sum."""
    if group in CYCLIC:
        size = CYCLIC[group]
        return np.add.outer(np.arange(size), np.arange(size)) % size
    members = elements(group)
    place = {p: i for i, p in enumerate(members)}
    return np.array([[place[tuple(y[i] for i in x)] for y in members] for x in members])


@cache
def swaps(group: str) -> tuple[int, ...]:
    """Return the identity and the elements that exchange two objects."""
    return tuple(i for i, p in enumerate(elements(group)) if sum(a != b for a, b in enumerate(p)) <= 2)


@dataclass(frozen=True)
class WordProblem(Task):
    """Elements of a group in, the product of all so far out; the difficulty is how many elements there are.

    S3, elements written as what they send 0, 1, 2 to:

        102 -> 102, 120 -> 210, 021 -> 120

    Z60 adds numbers modulo 60; A5 are the even permutations of five, and cannot be solved by layers of simpler groups;
    S5 by swaps only reads the identity and the ten exchanges of two, and still answers with any of 120.

    Sources: Grazzi et al., arXiv 2411.12537, section 5.2 (S5); Merrill et al., arXiv 2404.08819 (Z60, A5). A sample
    counts where every product of it is right.
    """

    scored_by: ClassVar[Literal["token", "sequence"]] = "sequence"
    group: str = "S5"
    swaps_only: bool = False
    trained: tuple[int, ...] = (32,)
    tested: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        """Check that the group is known."""
        if self.group not in (*SYMMETRIC, *CYCLIC):
            raise ConfigError(f"group: {self.group!r} is not known; known: {', '.join((*SYMMETRIC, *CYCLIC))}")

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: the elements."""
        if self.group in CYCLIC:
            return tuple(map(str, range(CYCLIC[self.group])))
        return tuple("".join(map(str, p)) for p in elements(self.group))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform elements of those allowed."""
        table = products(self.group)
        if self.swaps_only:
            read = rng.choice(swaps(self.group), size=difficulty).tolist()
        else:
            read = rng.integers(len(table), size=difficulty).tolist()
        labels, so_far = {}, 0
        for place, element in enumerate(read):
            so_far = int(table[so_far, element])
            labels[place] = so_far
        return Sample.of(read, labels)

    def text(self, sample: Sample) -> str:
        """Write element, arrow, product so far."""
        pairs = zip(self.spell(sample.tokens), self.spell(sample.labels), strict=True)
        return ", ".join(f"{x} -> {y}" for x, y in pairs)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing every product."""
        return float(len(self.words)) ** -difficulty

    def bits(self, difficulty: int) -> float:
        """Count all words of elements."""
        return difficulty * log2(len(swaps(self.group)) if self.swaps_only else len(self.words))
