"""Tasks of objects that move: five swapped variables, an array that is read, and both at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from math import log2

import numpy as np

from interlace.data.batches import Batch
from interlace.study.tasks.task import Draw, Sample, Task, packed

NAMES = "abcde"
SWAPS = tuple(combinations(range(len(NAMES)), 2))
SWAP_WORDS = tuple(f"{NAMES[i]},{NAMES[j]}" for i, j in SWAPS)
ASK_WORDS = tuple(f"{name}?" for name in NAMES)
STRICT = 0.3  # share of training samples that reveal nothing on the way


def spacing(rng: Draw, difficulty: int) -> int:
    """Return after how many swaps something is revealed.

    It is a power of two up to the difficulty; more than that in a strict sample, which reveals nothing on the way.
    """
    powers = max(1, difficulty.bit_length())
    return 2 * difficulty if rng.random() < STRICT else 1 << int(rng.integers(powers))


def swap_line(pair: tuple[int, int]) -> str:
    """Return a swap as Python."""
    x, y = (NAMES[i] for i in pair)
    return f"{x}, {y} = {y}, {x}"


def wander(
    rng: Draw, every: int, swaps: int, held: list[int], first_swap: int, tokens: list[int], labels: dict[int, int]
) -> list[int]:
    """Append swaps of five variables, with a question and its answer after every `every` swaps.

    The last question stands at the end without its answer. Words of questions follow those of swaps.

    Args:
        every: after how many swaps something is asked.
        held: the token that each variable would be answered with; it is moved by the swaps.
        first_swap: the token of the first swap.
        tokens, labels: of the sample so far.

    Returns:
        The swaps, then the variable asked for last.
    """

    def ask() -> int:
        asked = int(rng.integers(len(NAMES)))
        labels[len(tokens)] = held[asked]
        tokens.append(first_swap + len(SWAPS) + asked)
        return asked

    path = []
    for number in range(1, swaps + 1):
        swap = int(rng.integers(len(SWAPS)))
        i, j = SWAPS[swap]
        held[i], held[j] = held[j], held[i]
        tokens.append(first_swap + swap)
        path.append(swap)
        if number % every == 0 and number < swaps:
            tokens.append(held[ask()])
    return [*path, ask()]


class AskedAtTheEnd(Task):
    """A task whose training samples ask on the way too, and whose tests do not."""

    def sample(self, rng: Draw, difficulty: int, *, test: bool) -> Sample:
        """Draw a sample; tests have the last question alone."""
        found = super().sample(rng, difficulty, test=test)
        return without_reveals(found, self.words) if test else found


@dataclass(frozen=True)
class Swaps(AskedAtTheEnd):
    """Five variables, swapped; the difficulty is how many swaps there are. One token is one swap.

        a, b, c, d, e = range(5)
        a, c = c, a
        b, c = c, b
        assert b == 0

    Training samples ask for a variable on the way too, every 1, 2, 4, ... swaps, and three in ten only at the end; what
    is tested is the question at the end.

    Source: Merrill et al., arXiv 2604.03444, section 3.5 and appendix C, whose generator is not public; swaps only,
    as in its definition 2, any two variables, the variable asked for uniform.
    """

    trained: tuple[int, ...] = (4, 8, 16)
    tested: tuple[int, ...] = (4, 8, 16, 32, 64)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: the start, ten swaps, five questions, five values."""
        return ("range(5)", *SWAP_WORDS, *ASK_WORDS, *map(str, range(len(NAMES))))

    def curriculum(self, rng: Draw, progress: float) -> int:
        """Use 4 swaps for an eighth of the training, 8 to a quarter, then 16."""
        return self.trained[min(len(self.trained) - 1, int(progress >= 1 / 8) + int(progress >= 1 / 4))]

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform swaps, and questions between them."""
        tokens: list[int] = [0]
        labels: dict[int, int] = {}
        held = [self.id(str(value)) for value in range(len(NAMES))]
        problem = wander(rng, spacing(rng, difficulty), difficulty, held, 1, tokens, labels)
        return Sample.of(tokens, labels, [len(tokens) - 1], problem)

    def text(self, sample: Sample) -> str:
        """Write Python that runs."""
        lines = [f"{', '.join(NAMES)} = range({len(NAMES)})"]
        words = self.spell(sample.tokens)
        for place, word in enumerate(words):
            if word in SWAP_WORDS:
                lines.append(swap_line(SWAPS[SWAP_WORDS.index(word)]))
            elif word in ASK_WORDS:
                lines.append(f"assert {word[0]} == {self.words[sample.labels[place]]}")
        return "\n".join(lines)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of five."""
        return 1 / len(NAMES)

    def bits(self, difficulty: int) -> float:
        """Count all words of swaps."""
        return difficulty * log2(len(SWAPS))


def without_reveals(sample: Sample, words: tuple[str, ...]) -> Sample:
    """Return the sample with its last question alone, as a strict sample."""
    last = len(sample.tokens) - 1
    dropped = {p + k for p in range(last) if words[int(sample.tokens[p])] in ASK_WORDS for k in (0, 1)}
    kept = [p for p in range(last + 1) if p not in dropped]
    tokens = sample.tokens[kept].tolist()
    return replace(Sample.of(tokens, {len(tokens) - 1: int(sample.labels[last])}), problem=sample.problem)


@dataclass(frozen=True)
class Recall(Task):
    """One bit of an array; the difficulty is how long the array is.

        bits = [0, 1, 0, 0]
        a = 1
        assert bits[a] == 1

    Source: Merrill et al., arXiv 2604.03444, section 3.5. Compact form: the bits, then the index as one token. An index
    beyond the lengths trained on is a token that no training sample holds.
    """

    longest: int = 128
    trained: tuple[int, ...] = (64,)
    tested: tuple[int, ...] = (16, 32, 64, 128)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: bits and indices."""
        return ("0", "1", *(f"[{i}]" for i in range(self.longest)))

    def draw(self, rng: Draw, difficulty: int) -> Sample:
        """Draw uniform bits and a uniform index."""
        bits = rng.integers(2, size=difficulty).tolist()
        index = int(rng.integers(difficulty))
        return Sample.of([*bits, 2 + index], {difficulty: bits[index]})

    def text(self, sample: Sample) -> str:
        """Write Python that runs."""
        *bits, index = self.spell(sample.tokens)
        return f"bits = [{', '.join(bits)}]\na = {index[1:-1]}\nassert bits[a] == {self.words[sample.labels[-1]]}"

    def chance(self, difficulty: int) -> float:
        """Return one half."""
        return 0.5

    def bits(self, difficulty: int) -> float:
        """Count arrays and indices."""
        return difficulty + log2(difficulty)


@cache
def shortcut(symbols: int, trials: int = 200_000) -> float:
    """Return the score of answering with the most frequent symbol of five cells, by simulation."""
    cells = np.random.default_rng(0).integers(symbols, size=(trials, len(NAMES)))
    most = np.stack([(cells == s).sum(1) for s in range(symbols)]).max(0)
    return float(most.mean() / len(NAMES))


@dataclass(frozen=True)
class StateRecall(AskedAtTheEnd):
    """State-based recall: five variables hold indices into an array and are swapped; what lies where one points now?
    The difficulty is the length of the array, and how many swaps there are.

        memory = [0, 1, 1, 0, 1, 0, 0, 1]
        a, b, c, d, e = 3, 1, 4, 2, 6
        a, c = c, a
        assert memory[a] == 1

    Neither attention nor recurrence alone can express it for every length; a hybrid of both can. With bits, a model
    that reads all five cells and cannot follow the swaps answers with their majority, 0.69 right. With more
    symbols that floor is low.

    The compact form names what it binds, `[0] 0 [1] 1 ... a= [3] b= [1] ... a,c a?`, and a swap is one token; without
    names, which variable an address belongs to must be counted out, and small models stay at the floor. Training
    samples have fewer swaps at first and ask on the way too.

    An address beyond the lengths trained on is a token that no training sample holds: what is scored there mixes longer
    arrays with embeddings that were never learnt.

    Source: Merrill et al., arXiv 2604.03444, definition 2 and appendix C.3; addresses differ, swaps of any two.
    """

    symbols: int = 2
    longest: int = 64
    trained: tuple[int, ...] = (8, 16, 32)
    tested: tuple[int, ...] = (8, 16, 32, 64)

    @property
    def words(self) -> tuple[str, ...]:
        """Name the tokens: symbols, indices, ten swaps, five questions, five names."""
        indices = (f"[{i}]" for i in range(self.longest))
        names = (f"{name}=" for name in NAMES)
        return (*map(str, range(self.symbols)), *indices, *SWAP_WORDS, *ASK_WORDS, *names)

    def draw(self, rng: Draw, difficulty: int, swaps: int | None = None) -> Sample:
        """Draw uniform symbols, distinct addresses, uniform swaps (as many as the difficulty), and questions."""
        swaps = difficulty if swaps is None else swaps
        every = spacing(rng, max(1, swaps))
        memory = rng.integers(self.symbols, size=difficulty).tolist()
        points = rng.choice(difficulty, size=len(NAMES), replace=False).tolist()
        first_swap = self.symbols + self.longest
        first_name = first_swap + len(SWAPS) + len(ASK_WORDS)
        tokens: list[int] = [t for i, s in enumerate(memory) for t in (self.symbols + i, s)]
        for variable, point in enumerate(points):
            tokens += [first_name + variable, self.symbols + point]
        bound = list(tokens)
        labels: dict[int, int] = {}
        held = [memory[point] for point in points]
        path = wander(rng, every, swaps, held, first_swap, tokens, labels)
        return Sample.of(tokens, labels, [len(tokens) - 1], [*bound, *path])

    def batch(self, rng: Draw, rows: int, progress: float) -> Batch:
        """Draw a batch for a moment of the training.

        Longer arrays come from a fifth of the training on, and still longer ones from two fifths. Swaps grow in number,
        from none at the start to as many as the array is long when 0.7 of the training is done.
        """
        known = self.trained[: 1 + int(5 * progress)]
        samples: list[Sample] = []
        while len(samples) < rows:
            difficulty = int(rng.choice(known))
            most = round(difficulty * min(1.0, progress / 0.7))
            found = self.draw(rng, difficulty, int(rng.integers(most + 1)))
            if not found.held_out:
                samples.append(found)
        return packed(samples)

    def text(self, sample: Sample) -> str:
        """Write Python that runs."""
        words = self.spell(sample.tokens)
        start = words.index(f"{NAMES[0]}=")
        points = ", ".join(w[1:-1] for w in words[start + 1 : start + 2 * len(NAMES) : 2])
        lines = [f"memory = [{', '.join(words[1:start:2])}]", f"{', '.join(NAMES)} = {points}"]
        for place, word in enumerate(words):
            if word in SWAP_WORDS:
                lines.append(swap_line(SWAPS[SWAP_WORDS.index(word)]))
            elif word in ASK_WORDS:
                lines.append(f"assert memory[{word[0]}] == {self.words[sample.labels[place]]}")
        return "\n".join(lines)

    def chance(self, difficulty: int) -> float:
        """Return the chance of guessing one of the symbols."""
        return 1 / self.symbols

    def floors(self, difficulty: int) -> dict[str, float]:
        """Return the scores of guessing, and of reading the five cells without following the swaps."""
        return {"chance": self.chance(difficulty), "swaps ignored": shortcut(self.symbols)}

    def bits(self, difficulty: int) -> float:
        """Count arrays and swaps."""
        return difficulty * log2(self.symbols * len(SWAPS))
