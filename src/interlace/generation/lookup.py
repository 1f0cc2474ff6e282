"""Speculation by prompt lookup: where a text repeats what it holds already, what followed there is tried at once.

What is tried is read in one pass, and every token is still drawn from the model's own logits: nothing changes but time.
A recurrent state cannot go back: a pass works on a copy, and what came of it is read again where not all has come.
Source: prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3  # tokens that must be the same before a place is believed to go on the same way
SEARCHED = 8192  # tokens of a prompt, its last ones
RIGHT = 3  # tokens in a row that were foreseen before any are tried
MOST = 32  # tokens that are tried at once
PATIENCE, LONGEST = 16, 4096  # steps before tries that did not pay are measured again, at first and at most


class Lookup:
    """The tokens of one sequence, by what stands before them.

    Attributes:
        right: how many of the last tokens in a row were foreseen.
    """

    def __init__(self, ids: Sequence[int]):
        """ids: the prompt."""
        self._ids = list(ids)
        self._after = {tuple(self._ids[i - GRAM : i]): i for i in range(GRAM, len(self._ids))}
        self._place = self._after.get(tuple(self._ids[-GRAM:]))  # what is foreseen stands here
        self.right = 0

    def push(self, token: int) -> None:
        """Take the next token."""
        foreseen = self._place is not None and self._ids[self._place] == token
        if len(self._ids) >= GRAM:
            self._after[tuple(self._ids[-GRAM:])] = len(self._ids)
        self._ids.append(token)
        if foreseen and self._place is not None:
            self.right, self._place = self.right + 1, self._place + 1
        else:
            self.right, self._place = 0, self._after.get(tuple(self._ids[-GRAM:]))

    def draft(self, most: int) -> list[int]:
        """Return tokens that may come next: none unless the last ones were foreseen, and more the longer they were."""
        if self.right < RIGHT or self._place is None:
            return []
        count, start, size = min(most, MOST, 2 * self.right), self._place, len(self._ids)
        period = size - start  # beyond the end of the text, what is tried repeats itself
        return [self._ids[start + i % period] for i in range(count)]


class Pace:
    """Whether tries pay, by their own measurement: tokens a second of tries, beside those of ordinary steps."""

    def __init__(self) -> None:
        """Begin without a measurement."""
        self._rate = self._seconds = 0.0  # tokens a second of steps; seconds of a try
        self._waits, self._patience = PATIENCE, PATIENCE

    def stepped(self, tokens: int, seconds: float) -> None:
        """Count an ordinary step."""
        self._rate = _mean(self._rate, tokens / max(seconds, 1e-9))
        self._waits = max(0, self._waits - 1)

    def tried(self, tokens: int, seconds: float) -> None:
        """Count a try; one that has not paid is not repeated for a while, and then for twice as long."""
        self._seconds = _mean(self._seconds, seconds)
        if tokens < self._rate * seconds:
            self._waits, self._patience = self._patience, min(LONGEST, 2 * self._patience)
        else:
            self._patience = PATIENCE

    def worth(self, draft: int) -> bool:
        """Return whether so many tokens are worth a try, should all of them come."""
        return self._waits == 0 and draft >= max(2, 1.25 * self._rate * self._seconds)


def _mean(before: float, now: float) -> float:
    return now if not before else 0.7 * before + 0.3 * now
