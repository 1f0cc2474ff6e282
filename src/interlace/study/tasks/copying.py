"""Tasks of copying: all of a string, or its marked part."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from string import ascii_lowercase
from typing import ClassVar, Literal

from interlace.study.tasks.task import Draw, Sample, Task


def before_and_after(task: Task, sample: Sample) -> str:
    """Return what is read up to the bar, and what must be written after it."""
    words = task.spell(sample.tokens)
    bar = words.index("|")
    return f"{' '.join(words[: bar + 1])} -> {' '.join(task.spell(sample.labels[bar:]))}"


@dataclass(frozen=True)
class Copy(Task):
    """A string of letters again; the difficulty is its length.

        $ c a b | -> c a b .

    Source: Jelassi et al., arXiv 2402.01032: a transformer copies strings exponentially long in its size, a model
    with a state of S bits none beyond about S. A sample counts where every letter is right.
    """

    scored_by: ClassVar[Literal["token", "sequence"]] = "sequence"
    trained: tuple[int, ...] = tuple(range(5, 21))
    tested: tuple[int, ...] = (10, 20, 40, 80)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: start, bar, end, letters."""
        return ("$", "|", ".", *ascii_lowercase)

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform letters."""
        letters = (3 + rng.integers(26, size=difficulty)).tolist()
        tokens = [0, *letters, 1, *letters]
        goal = [*letters, 2]
        return Sample.of(tokens, {difficulty + 1 + i: x for i, x in enumerate(goal)})

    def text(self, sample: Sample) -> str:
        """Write string, bar, string, end."""
        return before_and_after(self, sample)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing every letter and the end."""
        return 27.0 ** -(difficulty + 1)

    def bits(self, difficulty: int) -> float:
        """Count all strings."""
        return difficulty * log2(26)


@dataclass(frozen=True)
class SelectiveCopy(Task):
    """The letters of a long string of blanks, in order; the difficulty is how long the string is. `marked` are letters.

        . c . . a . b . | -> c a b

    Source: Gu, Dao, arXiv 2312.00752, section 4.1.1, and MAD (Poli et al., arXiv 2403.17844), with one symbol for a
    blank.
    """

    scored_by: ClassVar[Literal["token", "sequence"]] = "token"
    marked: int = 16
    symbols: int = 14
    trained: tuple[int, ...] = (64,)
    tested: tuple[int, ...] = (32, 64, 128, 256)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: blank, bar, letters."""
        return (".", "|", *ascii_lowercase[: self.symbols])

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform letters at uniform places; after the bar, blanks are read."""
        letters = (2 + rng.integers(self.symbols, size=self.marked)).tolist()
        tokens = [0] * difficulty
        for place, letter in zip(sorted(rng.choice(difficulty, self.marked, replace=False)), letters, strict=True):
            tokens[place] = letter
        tokens += [1, *[0] * (self.marked - 1)]
        return Sample.of(tokens, {difficulty + i: x for i, x in enumerate(letters)})

    def text(self, sample: Sample) -> str:
        """Write string, bar, letters."""
        return before_and_after(self, sample)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the letters."""
        return 1 / self.symbols

    def bits(self, difficulty: int) -> float:
        """Count the strings of letters at one choice of places."""
        return self.marked * log2(self.symbols)
