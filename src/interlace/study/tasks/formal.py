"""Formal tasks with one answer at the end of a word: parity, modular arithmetic, boolean formulas."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from interlace.study.tasks.task import Draw, Sample, Task


@dataclass(frozen=True)
class Parity(Task):
    """Whether the ones are odd in number; the difficulty is how many bits there are.

        1 0 1 1 0 -> 1

    Source: Grazzi et al., arXiv 2411.12537, section 5.1: one label, at the last bit; lengths 3 to 40, tested to 256.
    Training begins with the shortest, as in Lahoti et al., arXiv 2603.15569, appendix D: without that, whether a small
    model finds the parity within a thousand steps hangs on its seed.
    """

    trained: tuple[int, ...] = tuple(range(3, 41))
    tested: tuple[int, ...] = (40, 64, 128, 256)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: the bits."""
        return ("0", "1")

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform bits."""
        bits = rng.integers(2, size=difficulty)
        return Sample.of(bits.tolist(), {difficulty - 1: int(bits.sum()) % 2})

    def curriculum(self, rng: Draw, progress: float) -> int:
        """Grow from the shortest words to all."""
        return self.growing(rng, progress)

    def text(self, sample: Sample) -> str:
        """Write bits, arrow, parity."""
        return f"{' '.join(self.spell(sample.tokens))} -> {self.words[sample.labels[-1]]}"

    def chance(self, difficulty: int) -> float:
        """Return one half."""
        return 0.5

    def bits(self, difficulty: int) -> float:
        """Count all words of bits."""
        return float(difficulty)


DIGITS = 5


@dataclass(frozen=True)
class ModularArithmetic(Task):
    """The value of an expression modulo 5; the difficulty is how many symbols it has, the equals sign apart.

    Without brackets the usual precedence holds, and the difficulty is odd:

        3 + 2 * 4 - 1 = 0

    With brackets every operation has its own, and a sign may stand before a digit:

        ( ( - 2 + 4 ) - 3 ) = 4

    Source: Grazzi et al., arXiv 2411.12537, section 5.1 and its code. Here the answer is uniform: expressions are drawn
    until they have the value drawn before them (zero is else a third of the products).
    """

    brackets: bool = False
    trained: tuple[int, ...] = tuple(range(3, 41, 2))
    tested: tuple[int, ...] = (39, 63, 127, 255)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: digits, operators, brackets, equals."""
        return (*map(str, range(DIGITS)), "+", "-", "*", "(", ")", "=")

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw a value, then an expression that has it."""
        want = int(rng.integers(DIGITS))
        while True:
            words, value = self._nested(rng, difficulty) if self.brackets else self._flat(rng, difficulty)
            if value == want:
                break
        tokens = [self.id(w) for w in (*words, "=")]
        return Sample.of(tokens, {len(tokens) - 1: want})

    def _flat(self, rng: Draw, size: int) -> tuple[list[str], int]:
        numbers = rng.integers(DIGITS, size=size // 2 + 1).tolist()
        operators = rng.integers(3, size=size // 2).tolist()
        words, total, term = [str(numbers[0])], 0, numbers[0]
        for operator, number in zip(operators, numbers[1:], strict=True):
            words += ["+-*"[operator], str(number)]
            if operator == 2:
                term = term * number % DIGITS
            else:
                total, term = total + term, number if operator == 0 else -number
        return words, (total + term) % DIGITS

    def _nested(self, rng: Draw, size: int) -> tuple[list[str], int]:
        """Draw a nested expression of `size` symbols, at least 1; 2 and 4 are a signed digit, 3 one in brackets."""
        if size < 5:
            digit = int(rng.integers(DIGITS))
            words = {1: [f"{digit}"], 2: ["-", f"{digit}"], 3: ["(", f"{digit}", ")"], 4: ["(", "-", f"{digit}", ")"]}
            return words[size], (digit if size % 2 else -digit) % DIGITS
        left_size = int(rng.integers(1, size - 3))
        (left, a), (right, b) = self._nested(rng, left_size), self._nested(rng, size - 3 - left_size)
        plus = bool(rng.integers(2))
        return ["(", *left, "+" if plus else "-", *right, ")"], (a + b if plus else a - b) % DIGITS

    def text(self, sample: Sample) -> str:
        """Write expression, equals, value."""
        return f"{' '.join(self.spell(sample.tokens))} {self.words[sample.labels[-1]]}"

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of five values."""
        return 1 / DIGITS

    def bits(self, difficulty: int) -> float:
        """Count digits and operators in turn; with brackets, only the digits of the longest shape."""
        return (
            log2(5) * (difficulty // 4 + 1)
            if self.brackets
            else log2(5) * (difficulty // 2 + 1) + log2(3) * (difficulty // 2)
        )


@dataclass(frozen=True)
class Formula(Task):
    """The value of a boolean formula in Polish notation; the difficulty is how many symbols it has (odd).

        & | 0 1 & 1 1 = 1

    Source: corollary 3.1 of Merrill et al., arXiv 2604.03444, where padded hybrids are separated from padded
    transformers and from recurrences; no experiment is reported there. The shape is drawn top down with both sides of
    an operator of random size; the answer is uniform.
    """

    trained: tuple[int, ...] = tuple(range(3, 42, 2))
    tested: tuple[int, ...] = (21, 41, 81, 161)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: constants, operators, equals."""
        return ("0", "1", "&", "|", "=")

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw a value, then a formula that has it."""
        want = int(rng.integers(2))
        while True:
            words, value = self._formula(rng, difficulty)
            if value == want:
                break
        return Sample.of([self.id(w) for w in (*words, "=")], {len(words): want})

    def _formula(self, rng: Draw, size: int) -> tuple[list[str], int]:
        if size == 1:
            bit = int(rng.integers(2))
            return [str(bit)], bit
        left_size = 2 * int(rng.integers(size // 2)) + 1
        (left, a), (right, b) = self._formula(rng, left_size), self._formula(rng, size - 1 - left_size)
        both = bool(rng.integers(2))
        return ["&" if both else "|", *left, *right], a & b if both else a | b

    def text(self, sample: Sample) -> str:
        """Write formula, equals, value."""
        return f"{' '.join(self.spell(sample.tokens))} {self.words[sample.labels[-1]]}"

    def chance(self, difficulty: int) -> float:
        """Return one half."""
        return 0.5

    def bits(self, difficulty: int) -> float:
        """Count the constants and operators of one shape alone."""
        return float(difficulty)
