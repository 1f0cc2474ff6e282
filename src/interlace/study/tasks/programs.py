"""The task of short programs: what does a variable hold after assignments, swaps, conditions and loops?"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from interlace.study.tasks.objects import ASK_WORDS, NAMES, AskedAtTheEnd, spacing
from interlace.study.tasks.task import Draw, Sample

Words = tuple[str, ...]


@dataclass(frozen=True)
class Programs(AskedAtTheEnd):
    """Variable tracking through short programs; the difficulty is how many statements there are.

        a, b, c, d, e = 3, 1, 4, 1, 5
        b = a
        a, c = c, a
        if b == 3: d = a
        for _ in range(3): a, e = e, a
        assert d == 4

    A condition holds in nine of sixteen cases. Training samples also ask on the way, as those of swaps do.

    Sources of the form: Merrill et al., arXiv 2604.03444, section 3.5 (swaps); Wu et al., arXiv 2505.20896
    (assignments).
    """

    values: int = 8
    trained: tuple[int, ...] = (2, 4, 8)
    tested: tuple[int, ...] = (4, 8, 16, 32)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: names, values, statements, questions."""
        return (*NAMES, *map(str, range(self.values)), "=", "swap", "if", "repeat", *ASK_WORDS)

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw statements of five sorts, equally often, and questions between them."""
        every = spacing(rng, difficulty)
        held = dict(zip(NAMES, (str(v) for v in rng.integers(self.values, size=len(NAMES))), strict=True))
        words: list[str] = list(held.values())
        labels: dict[int, int] = {}
        problem = list(words)
        for number in range(1, difficulty + 1):
            statement = self._statement(rng, held)
            self._run(statement, held)
            words += statement
            problem += statement
            if number == difficulty or number % every == 0:
                asked = NAMES[int(rng.integers(len(NAMES)))]
                labels[len(words)] = self.id(held[asked])
                words += [f"{asked}?", held[asked]]
        words.pop()
        tokens = [self.id(w) for w in words]
        return Sample.of(tokens, labels, [len(tokens) - 1], [self.id(w) for w in (*problem, words[-1])])

    def _statement(self, rng: Draw, held: dict[str, str]) -> Words:
        sort = int(rng.integers(5))
        x, y, z = (NAMES[i] for i in rng.choice(len(NAMES), size=3, replace=False))
        if sort == 0:
            return (x, "=", str(rng.integers(self.values)))
        if sort == 1:
            return (x, "=", y)
        if sort == 2:
            return ("swap", x, y)
        if sort == 3:
            value = held[z] if rng.random() < 0.5 else str(rng.integers(self.values))
            return ("if", z, value, x, "=", y)
        return ("repeat", str(rng.integers(1, min(4, self.values))), "swap", x, y)

    def _run(self, statement: Words, held: dict[str, str]) -> None:
        first, *rest = statement
        if first == "if":
            if held[rest[0]] == rest[1]:
                self._run(tuple(rest[2:]), held)
        elif first == "repeat":
            for _ in range(int(rest[0])):
                self._run(tuple(rest[1:]), held)
        elif first == "swap":
            held[rest[0]], held[rest[1]] = held[rest[1]], held[rest[0]]
        else:
            held[first] = held.get(rest[1], rest[1])

    def text(self, sample: Sample) -> str:
        """Write Python that runs."""
        words = self.spell(sample.tokens)
        lines = [f"{', '.join(NAMES)} = {', '.join(words[: len(NAMES)])}"]
        place = len(NAMES)
        while place < len(words):
            if words[place] in ASK_WORDS:
                lines.append(f"assert {words[place][0]} == {self.words[sample.labels[place]]}")
                place += 2
            else:
                line, place = self._line(words, place)
                lines.append(line)
        return "\n".join(lines)

    def _line(self, words: list[str], place: int) -> tuple[str, int]:
        """Return one statement as Python, and where the next begins."""
        first = words[place]
        if first == "if":
            inner, after = self._line(words, place + 3)
            return f"if {words[place + 1]} == {words[place + 2]}: {inner}", after
        if first == "repeat":
            inner, after = self._line(words, place + 2)
            return f"for _ in range({words[place + 1]}): {inner}", after
        if first == "swap":
            x, y = words[place + 1 : place + 3]
            return f"{x}, {y} = {y}, {x}", place + 3
        return f"{first} = {words[place + 2]}", place + 3

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the values."""
        return 1 / self.values

    def bits(self, difficulty: int) -> float:
        """Count beginnings and swaps alone."""
        return len(NAMES) * log2(self.values) + 2 * difficulty
