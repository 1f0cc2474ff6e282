"""Turn ids into text as they come, for every decoder of `tokenizers`; the joined pieces equal what the library gives.

A decoder is a chain of steps, each of which turns tokens into tokens. Here each step receives one token at a time and
returns what can no longer change. A byte waits for the rest of its character. A blank waits for the end of the text if
the decoder strips it there. Special tokens are dropped before the first step: they would break characters.

Source: huggingface/tokenizers tokenizers/src/decoders, tokenizers/src/pre_tokenizers/byte_level.rs.
"""

from __future__ import annotations

import codecs
import copy
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer as Fast
from tokenizers.decoders import Decoder as Library

from interlace.data.strangers import guarded


def _byte_letters() -> dict[str, int]:
    """Map the letter that byte-level tokenizers write for a byte to that byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in plain)
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


BYTE_LETTERS = _byte_letters()
HEX = set("0123456789abcdefABCDEF")
SAID = "tokenizer: cannot write a token"


class DecoderStep:
    """One decoder that treats each token by itself."""

    def __init__(self, decode: Callable[[str], str]):
        """decode: one token to its text; "" for none."""
        self._decode = decode

    def push(self, token: str) -> list[str]:
        """Add a token; return the tokens that are now settled."""
        return [self._decode(token)]

    def end(self) -> list[str]:
        """End the text; return the tokens that this settles."""
        return []

    def begin_after(self) -> None:
        """Take the tokens that follow as the middle of a text."""

    def measure(self, token: str) -> str | bytes:
        """Return what a token in the middle of a text is turned into."""
        return self._decode(token)


class Placed(DecoderStep):
    """A step for tokens that are written otherwise at the start of a text than in its middle (Metaspace, WordPiece)."""

    def __init__(self, first: Callable[[str], str], later: Callable[[str], str]):
        super().__init__(later)
        self._first: Callable[[str], str] | None = first

    def push(self, token: str) -> list[str]:
        decode, self._first = self._first or self._decode, None
        return [decode(token)]

    def begin_after(self) -> None:
        self._first = None


class ByteFallback(DecoderStep):
    """A step whose tokens <0x00> to <0xFF> are bytes; a run of them is a text, or a sign of a fault for each byte."""

    def __init__(self) -> None:
        super().__init__(lambda token: token)
        self._run = b""

    @staticmethod
    def _byte(token: str) -> int | None:
        good = len(token) == 6 and token.startswith("<0x") and token.endswith(">") and set(token[3:5]) <= HEX
        return int(token[3:5], 16) if good else None

    def push(self, token: str) -> list[str]:
        byte = self._byte(token)
        if byte is None:
            return [*self.end(), token]
        self._run += bytes([byte])
        return []

    def end(self) -> list[str]:
        run, self._run = self._run, b""
        if not run:
            return []
        try:
            return [run.decode()]
        except UnicodeDecodeError:
            return ["�"] * len(run)

    def measure(self, token: str) -> str | bytes:
        byte = self._byte(token)
        return token if byte is None else bytes([byte])


class ByteLevel(DecoderStep):
    """A step in which each letter of a token is a byte; a token with other letters is a text of its own."""

    def __init__(self) -> None:
        super().__init__(lambda token: token)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> list[str]:
        return [self._characters.decode(self.measure(token))]

    def end(self) -> list[str]:
        return [self._characters.decode(b"", True)]

    def __copy__(self) -> ByteLevel:
        twin = ByteLevel()
        twin._characters.setstate(self._characters.getstate())
        return twin

    def measure(self, token: str) -> bytes:
        try:
            return bytes(BYTE_LETTERS[letter] for letter in token)
        except KeyError:
            return token.encode()


class WordEnds(DecoderStep):
    """A step in which a suffix ends a word, and becomes a blank unless the text ends (BPEDecoder)."""

    def __init__(self, suffix: str):
        super().__init__(lambda token: token.replace(suffix, " "))
        self._suffix = suffix
        self._held: str | None = None

    def push(self, token: str) -> list[str]:
        settled = [] if self._held is None else super().push(self._held)
        self._held = token
        return settled

    def end(self) -> list[str]:
        return [] if self._held is None else [self._held.replace(self._suffix, "")]


class Unrepeated(DecoderStep):
    """A step that leaves out a token that follows itself (CTC)."""

    _last: str | None = None

    def push(self, token: str) -> list[str]:
        if token == self._last:
            return []
        self._last = token
        return [text for text in super().push(token) if text]


class Ends(DecoderStep):
    """A step that strips a letter at both ends of the whole text, a given number of times."""

    def __init__(self, letter: str, at_start: int, at_end: int):
        super().__init__(lambda text: text)
        self.at_start = self._left = at_start
        self._letter, self._most, self._held = letter, at_end, ""

    def begin_after(self) -> None:
        self._left = 0

    def push(self, token: str) -> list[str]:
        while self._left and token:
            if token[0] != self._letter:
                self._left = 0
            else:
                self._left, token = self._left - 1, token[1:]
        text = self._held + token
        kept = len(text)
        while kept and len(text) - kept < self._most and text[kept - 1] == self._letter:
            kept -= 1
        self._held = text[kept:]
        return [text[:kept]]


class AtTheEnd(DecoderStep):
    """A step whose result cannot be told before the end of the whole text."""

    def __init__(self, decode: Callable[[str], str]):
        super().__init__(decode)
        self._held: str | None = None

    def push(self, token: str) -> list[str]:
        self._held = (self._held or "") + token
        return []

    def end(self) -> list[str]:
        return [] if self._held is None else [self._decode(self._held)]


def _library(table: dict[str, Any]) -> Library:
    """Return a decoder of the library from its JSON."""
    empty = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    whole = {"version": "1.0", "added_tokens": [], "model": empty, "decoder": table}
    return Fast.from_str(json.dumps(whole)).decoder


def _flat(table: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if table is None:
        return
    if table["type"] == "Sequence":
        for part in table["decoders"]:
            yield from _flat(part)
    else:
        yield table


def _step(table: dict[str, Any], joined: bool) -> DecoderStep:
    """Return the step for a decoder's JSON; `joined`: a step before it has made one text of all tokens."""
    kind = table["type"]
    if kind == "ByteFallback" and not joined:
        return ByteFallback()
    if kind == "ByteLevel" and not joined:
        return ByteLevel()
    if kind == "Fuse":
        return DecoderStep(lambda text: text)
    if kind == "BPEDecoder" and not joined:
        return WordEnds(table["suffix"])
    library = _library(table)

    def alone(token: str) -> str:
        return guarded(lambda: library.decode([token]), SAID)

    def later(token: str) -> str:
        return guarded(lambda: library.decode(["x", token]), SAID)[1:]

    if joined:
        if kind == "Strip":
            return Ends(table["content"], table["start"], table["stop"])
        letterwise = kind == "Metaspace" or (kind == "Replace" and len(table["pattern"].get("String", "..")) == 1)
        return DecoderStep(alone) if letterwise else AtTheEnd(alone)
    if kind == "CTC":
        return Unrepeated(alone)
    return Placed(alone, later) if kind in ("Metaspace", "WordPiece") else DecoderStep(alone)


class Decoding:
    """The decoder of one text.

    A token of `fast` is special if the library leaves it out of decoded texts.
    """

    def __init__(self, fast: Fast):
        """fast: the tokenizer; it must not change while this is used."""
        self._fast = fast
        self._special = {t.content for t in fast.get_added_tokens_decoder().values() if t.special}
        table = None if fast.decoder is None else json.loads(fast.decoder.__getstate__())
        self._steps: list[DecoderStep] = [] if table is not None else [Placed(lambda t: t, lambda t: " " + t)]
        joined = False
        for part in _flat(table):
            self._steps.append(_step(part, joined))
            joined = joined or part["type"] in ("Fuse", "ByteLevel")

    def begin_after(self) -> None:
        """Take the ids that follow as the middle of a text."""
        for step in self._steps:
            step.begin_after()

    def token(self, number: int) -> str | None:
        """Return the token of an id, or None if it is no part of a text: special, or beyond the vocabulary."""
        token = self._fast.id_to_token(number) if 0 <= number < 1 << 32 else None
        return None if token is None or token in self._special else token

    def push(self, number: int) -> str:
        """Add an id; return the text that is now settled."""
        token = self.token(number)
        return "" if token is None else self._through([token], 0)

    def end(self) -> str:
        """End the text; return the text that this settles."""
        return "".join(self._through(step.end(), i + 1) for i, step in enumerate(self._steps))

    def pending(self) -> str:
        """Return what `end` would return, and change nothing."""
        steps = [copy.copy(step) for step in self._steps]
        text, self._steps = self.end(), steps
        return text

    def size_bytes(self, number: int) -> int:
        """Return how many bytes of text an id stands for in the middle of a text."""
        text: str | bytes | None = self.token(number)
        if text is None:
            return 0
        for step in self._steps:
            if isinstance(text, bytes):
                break
            text = step.measure(text)
        return len(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))

    def lead_bytes(self, numbers: Iterable[int]) -> int:
        """Return how many bytes fewer these ids have at the start of a text than in its middle, such as a blank."""
        if not any(isinstance(s, Placed) or (isinstance(s, Ends) and s.at_start) for s in self._steps):
            return 0
        size, text = 0, ""
        for number in numbers:
            size += self.size_bytes(number)
            if text := self.push(number):
                break
        text = text or self.end()
        return 0 if "�" in text else max(0, size - len(text.encode("utf-8", "replace")))

    def _through(self, tokens: Iterable[str], first: int) -> str:
        for step in self._steps[first:]:
            tokens = [out for token in tokens for out in step.push(token)]
        return "".join(tokens)
