"""Stop strings: they end a text, and may hold special tokens although decoded texts do not show those."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from interlace.base.errors import ConfigError
from interlace.data.tokenizer import Tokenizer

FIRST_MARK, LAST_MARK = 0xD800, 0xDFFF  # half surrogates, which no decoded text holds


def checked_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return stop strings as a tuple; a single string becomes one of them.

    Raises:
        ConfigError: one is empty or no text.
    """
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list | tuple) else stop
    if stops is None:
        return ()
    if not isinstance(stops, tuple) or any(not isinstance(s, str) for s in stops):
        raise ConfigError(f"stop: must be a text or a list of texts, got {stop!r}")
    if "" in stops:
        raise ConfigError("stop: an empty string would end every text at once; leave it out")
    return stops


class Stops:
    """Cuts the ids of one text where a stop string appears.

    Attributes:
        met: whether one did.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: str | Sequence[str] | None,
        after: Sequence[int] = (),
        shown: Collection[str] = (),
    ):
        """after: ids of the text that the cut text continues; shown: special tokens that are part of the text."""
        stops, names = checked_stops(stop), tokenizer.special_ids()
        self._names = {number: name for number, name in names.items() if name in shown}
        used = sorted({n for n in names.values() if n and any(n in s for s in stops)}, key=lambda n: (-len(n), n))
        marks = {name: chr(FIRST_MARK + i) for i, name in enumerate(used)}
        if len(marks) >= LAST_MARK - FIRST_MARK:
            raise ConfigError(f"stop: names {len(marks)} special tokens; the most is {LAST_MARK - FIRST_MARK - 1}")
        pattern = re.compile("|".join(re.escape(name) for name in used)) if used else None
        written = [s if pattern is None else pattern.sub(lambda m: marks[m[0]], s) for s in stops]
        self._plain = [s for s in written if _shown(s) == s]
        self._marked = [s for s in written if _shown(s) != s]
        self._marks = {i: marks.get(name, chr(LAST_MARK)) for i, name in names.items()}
        self._decoding = tokenizer.decoding(after)
        self._held, self.met = "", False

    def cut(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield pieces of the text before the stop; no id is asked for after it."""
        for token in ids:
            if piece := self.push(token):
                yield piece
            if self.met:
                return
        if piece := self.end():
            yield piece

    def push(self, token: int) -> str:
        """Take an id; return what may be shown now. None may follow once a stop string was met."""
        if token in self._names:
            return self._take(self._decoding.end() + self._names[token])
        mark = self._marks.get(token)
        if mark is None:
            return self._take(self._decoding.push(token))
        if self._marked and (place := self._place(self._held + self._decoding.pending() + mark)):
            self.met = True
            return place[0]
        return self._take(mark if self._marked else "")

    def end(self) -> str:
        """Return the rest of the text, if no stop string was met."""
        if self.met:
            return ""
        piece = self._take(self._decoding.end())
        return piece if self.met else piece + _shown(self._held)

    def _take(self, text: str) -> str:
        """Add a text; return what may be shown now."""
        self._held += text
        if found := self._place(self._held):
            self.met = True
            return found[0]
        cut = len(self._held) - (max((len(s) for s in self._marked), default=1) - 1)
        longest, seen = max((len(s) for s in self._plain), default=1) - 1, 0
        while cut > 0 and seen < longest:  # as many letters that are shown as a plain stop string may begin with
            seen = len(_shown(self._held[cut:]))
            cut -= seen < longest
        if cut <= 0:
            return ""
        piece, self._held = _shown(self._held[:cut]), self._held[cut:]
        return piece

    def _place(self, text: str) -> tuple[str] | None:
        """Return the shown text before the first stop string, in a tuple; None if there is none."""
        shown = _shown(text)
        places = [shown.find(s) for s in self._plain] + [
            len(_shown(text[:place])) if (place := text.find(s)) >= 0 else -1 for s in self._marked
        ]
        first = min((p for p in places if p >= 0), default=None)
        return None if first is None else (shown[:first],)


def _shown(text: str) -> str:
    """Return the text without marks."""
    return "".join(c for c in text if not FIRST_MARK <= ord(c) <= LAST_MARK) if not text.isascii() else text
