"""The base of all tasks: how samples are drawn, where their answers are, what chance gives, and how they are scored."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from interlace.base.errors import ConfigError
from interlace.base.segments import Segments
from interlace.data.batches import IGNORE, Batch

Draw = np.random.Generator
HELD_OUT = 8  # one in so many of the possible samples is kept for testing, where there are enough of them
ENOUGH_BITS = 17.0
TRIES = 1000


@dataclass(frozen=True)
class Sample:
    """One problem in compact form.

    Attributes:
        tokens: int64 [T], what is read.
        labels: int64 [T], what is to be predicted after each token, or IGNORE.
        answers: the places whose predictions are scored; the other labels are only trained on.
        problem: what makes it the same problem as another, whatever is revealed on the way.
    """

    tokens: np.ndarray
    labels: np.ndarray
    answers: tuple[int, ...]
    problem: bytes

    @staticmethod
    def of(
        tokens: Sequence[int],
        labels: dict[int, int],
        answers: Sequence[int] | None = None,
        problem: Sequence[int] | None = None,
    ) -> Sample:
        """Make a sample.

        labels: label by place. All places are scored unless `answers` names them; `problem` is the tokens unless given.
        """
        goal = np.full(len(tokens), IGNORE, dtype=np.int64)
        for place, label in labels.items():
            goal[place] = label
        scored = sorted(labels) if answers is None else sorted(answers)
        read = np.asarray(tokens, dtype=np.int64)
        same = read if problem is None else np.asarray(problem, dtype=np.int64)
        return Sample(read, goal, tuple(scored), same.tobytes())

    @property
    def held_out(self) -> bool:
        """Return whether this problem belongs to the tests, by its hash."""
        return hashlib.blake2b(self.problem, digest_size=1).digest()[0] % HELD_OUT == 0


class Task(ABC):
    """A family of problems of rising difficulty.

    Attributes:
        scored_by: "token" (share of answers that are right) or "sequence" (share of samples whose answers all are).
        trained: the difficulties that are trained on, easiest first.
        tested: the difficulties that are tested; those above the last of `trained` are beyond training.
    """

    scored_by: ClassVar[Literal["token", "sequence"]] = "token"
    trained: tuple[int, ...]
    tested: tuple[int, ...]

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """Name each token of the compact form."""

    @abstractmethod
    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw one problem."""

    def text(self, sample: Sample) -> str:
        """Write the problem with its answers for people: by default the words in a row, each answer after an arrow."""
        words = self.spell(sample.tokens)
        for place in sample.answers:
            words[place] += f" -> {self.words[sample.labels[place]]}"
        return " ".join(words)

    @abstractmethod
    def chance(self, difficulty: int) -> float:
        """Return the score of guessing, if only the frequency of each answer is known."""

    def floors(self, difficulty: int) -> dict[str, float]:
        """Return scores that show nothing learnt, or only a part of the task, by what earns them."""
        return {"chance": self.chance(difficulty)}

    @abstractmethod
    def bits(self, difficulty: int) -> float:
        """Return log2 of the number of problems of this difficulty, or of a lower bound."""

    def id(self, word: str) -> int:
        """Return the token of a word."""
        return self.words.index(word)

    def spell(self, tokens: Sequence[int] | np.ndarray) -> list[str]:
        """Return the words of tokens."""
        return [self.words[int(t)] for t in tokens]

    def splits(self, difficulty: int) -> bool:
        """Return whether tests of this difficulty are kept out of training: only if there are enough problems."""
        return self.bits(difficulty) >= ENOUGH_BITS

    def sample(self, rng: Draw, difficulty: int, *, test: bool) -> Sample:
        """Draw one problem for training or for testing; the two never meet if `splits` says so."""
        found = self.draw(rng, difficulty)
        if not self.splits(difficulty):
            return found
        for _ in range(TRIES):
            if found.held_out == test:
                return found
            found = self.draw(rng, difficulty)
        raise ConfigError(
            f"difficulty: {TRIES} draws at {difficulty} gave no sample for {'test' if test else 'train'}ing"
        )

    def curriculum(self, rng: Draw, progress: float) -> int:
        """Draw the difficulty of a training sample when `progress` of the training is done; any by default."""
        return int(rng.choice(self.trained))

    def growing(self, rng: Draw, progress: float, until: float = 0.6) -> int:
        """Draw a difficulty by a curriculum: from the easiest two of `trained` to all of them, when `until` is done."""
        count = 2 + (len(self.trained) - 2) * min(1.0, progress / until)
        return int(rng.choice(self.trained[: int(count)]))

    def test_set(self, difficulty: int, count: int) -> list[Sample]:
        """Return the problems that every model is tested on: a function of the difficulty alone."""
        rng = np.random.default_rng([0x7E57, difficulty])
        return [self.sample(rng, difficulty, test=True) for _ in range(count)]

    def batch(self, rng: Draw, rows: int, progress: float) -> Batch:
        """Return training samples end to end; each counts the same, however many labels it has."""
        return packed([self.sample(rng, self.curriculum(rng, progress), test=False) for _ in range(rows)])


def packed(samples: Sequence[Sample]) -> Batch:
    """Return samples as segments of one batch, without padding; the labels of a sample share a weight of 1."""
    weights = []
    for s in samples:
        labelled = s.labels != IGNORE
        weights.append(np.where(labelled, 1.0 / max(1, labelled.sum()), 0.0))
    return Batch(
        torch.from_numpy(np.concatenate([s.tokens for s in samples])),
        torch.from_numpy(np.concatenate([s.labels for s in samples])),
        Segments.from_lengths([len(s.tokens) for s in samples]),
        torch.from_numpy(np.concatenate(weights)).float(),
    )
