"""Encode texts by a byte-level BPE word by word, the ids of each word kept: several times as fast as `tokenizers`.

The library splits a text into words by a regular expression, and looks up each of them; this does the same with
Python's `re` and a table. It answers only where both are sure to agree:

- The expression uses what both read alike. `\\p{L}` and its like are written out.
- Every character has had one Unicode category since version 3.2, so that tables of different versions agree.
- The text holds no added token, and is normalised already.

For any other text or tokenizer there is no answer, and the library is asked.

Source: huggingface/tokenizers tokenizers/src/pre_tokenizers/byte_level.rs (the expression of GPT-2).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any

from tokenizers import Tokenizer as Fast
from tokenizers import models

from interlace.data.decoding import BYTE_LETTERS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space
FOLDED = "\u017f\u212a"  # which lower-case letters of ASCII match where case is ignored
MOST_WORDS, LONGEST_WORD = 1 << 17, 64  # that are kept; characters of one
LETTERS = {byte: letter for letter, byte in BYTE_LETTERS.items()}
PLAIN = re.compile(r"[\w'/ .,:;!<>=\-#\"%&@~`_]")  # stands for itself, within brackets and without
GROUPS = ("(?:", "(?i:", "(?!", "(?=")


class WordCache(dict[str, list[int]]):
    """The ids of words, by a tokenizer's own model."""

    def __init__(self, fast: Fast, splits: list[re.Pattern[str]], normal: bool):
        """splits: what cuts a text into words, one after the other. normal: whether texts are read in NFC."""
        super().__init__()
        self._model, self._splits, self._normal = fast.model, splits, normal
        added = [token.content for token in fast.get_added_tokens_decoder().values()]
        forms = sorted({f for text in added for f in (text, unicodedata.normalize("NFC", text)) if f})
        self._added = re.compile("|".join(map(re.escape, forms))) if forms else None

    @staticmethod
    def of(fast: Fast) -> WordCache | None:
        """Return the cache of a tokenizer; None where it is no byte-level BPE, or splits texts in another way."""
        normalizer = _table(fast.normalizer)
        if not isinstance(fast.model, models.BPE) or normalizer not in ({}, {"type": "NFC"}):
            return None
        steps = _table(fast.pre_tokenizer)
        parts = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
        found = [_pattern(part, last=part is parts[-1]) for part in parts]
        if None in found:
            return None
        splits = [split for pattern in found if pattern and (split := _compiled(pattern)) is not None]
        return WordCache(fast, splits, bool(normalizer)) if len(splits) == sum(map(bool, found)) and splits else None

    def __missing__(self, word: str) -> list[int]:
        ids = [token.id for token in self._model.tokenize("".join([LETTERS[byte] for byte in word.encode()]))]
        if len(word) <= LONGEST_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def encode(self, text: str) -> list[int] | None:
        """Return the ids of a text, with nothing added; None if only the library is sure to read it right."""
        plain = text.isascii()
        if not plain and (_changing().search(text) or (self._normal and not unicodedata.is_normalized("NFC", text))):
            return None
        if self._added is not None and self._added.search(text):
            return None
        words = self._splits[0].findall(text)
        for split in self._splits[1:]:
            words = [word for one in words for word in split.findall(one)]
        if sum(map(len, words)) != len(text):  # what no expression matches is a word as well
            return None
        return list(chain.from_iterable(map(self.__getitem__, words)))


def _table(component: Any) -> dict[str, Any]:
    """Return a component of a tokenizer as a table; {} for none."""
    found: dict[str, Any] = {} if component is None else json.loads(component.__getstate__())
    return found


def _pattern(part: dict[str, Any], last: bool) -> str | None:
    """Return the expression by which a part splits, "" for a part that does not; None for any other part."""
    if part.get("type") == "ByteLevel":
        return None if part.get("add_prefix_space") or not last else GPT2 if part.get("use_regex", True) else ""
    if part.get("type") == "Split" and not last:
        kind = (part.get("behavior"), part.get("invert"))
        pattern: str | None = part.get("pattern", {}).get("Regex")
        return pattern or None if kind in (("Isolated", False), ("Removed", True)) else None
    return None


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Return an expression of the library for `re`, or None where the two may differ."""
    try:
        return re.compile("".join(_translated(pattern)))
    except (ValueError, re.error):
        return None


def _translated(pattern: str) -> Iterator[str]:
    """Yield an expression of Oniguruma piece by piece as `re` writes it; raise ValueError for what is not known."""
    tokens = re.findall(r"\\p\{\w+\}|\\.|\(\?[^)]?:?|\{\d+(?:,\d*)?\}|.", pattern, re.DOTALL)
    inside = False
    for before, token in zip(["", *tokens], tokens, strict=False):
        if token.startswith("\\p"):
            ranges = _ranges(token[3:-1])
            yield ranges if inside else f"[{ranges}]"
        elif token == r"\s":
            yield SPACES if inside else f"[{SPACES}]"
        elif token == r"\S" and not inside:
            yield f"[^{SPACES}]"
        elif inside:
            if token == "[" or (token == "&" and before == "&"):  # a class within a class
                raise ValueError(pattern)
            inside = token != "]"
            if not (token in ("]", "^", "(", ")", "+", "*", "?", "|", "$", "{", "}") or _stands_for_itself(token)):
                raise ValueError(pattern)
            yield token
        else:
            inside = token == "["
            if token == "+" and before.startswith("{"):  # possessive to one of them
                raise ValueError(pattern)
            known = token in (*GROUPS, "[", "(", ")", "|", "?", "*", "+") or re.fullmatch(r"\{\d+(,\d*)?\}", token)
            if not known and (token in (".", "#") or not _stands_for_itself(token)):
                raise ValueError(pattern)
            yield "(?:" if token == "(" else token  # findall returns groups


def _stands_for_itself(token: str) -> bool:
    """Return whether a character, or an escape, means the same to both."""
    if token[0] == "\\":
        return token[1] in "rntvf" or (not token[1].isalnum() and token[1].isascii())
    return PLAIN.fullmatch(token) is not None


@cache
def _categories() -> list[str]:
    """Return the category of each character of the basic plane; "" for one that has had several."""
    old, new = unicodedata.ucd_3_2_0.category, unicodedata.category
    found = [new(c) if old(c) == new(c) not in ("Cn", "Cs") else "" for c in map(chr, range(0x10000))]
    for letter in FOLDED:
        found[ord(letter)] = ""
    return found


@cache
def _ranges(category: str) -> str:
    """Return the characters of a category, such as "L" or "Lu", for within brackets; with "" those that changed."""
    found = [bool(own) and own.startswith(category) if category else not own for own in _categories()]
    if not any(found):
        raise ValueError(category)
    edges = [n for n in range(0x10001) if (n > 0 and found[n - 1]) != (n < 0x10000 and found[n])]
    return "".join(f"{_escaped(a)}-{_escaped(b - 1)}" for a, b in zip(edges[::2], edges[1::2], strict=True))


def _escaped(number: int) -> str:
    return f"\\u{number:04x}"


@cache
def _changing() -> re.Pattern[str]:
    """Return what finds a character that tables of different versions may read otherwise."""
    return re.compile(f"[{_ranges('')}\\U00010000-\\U0010ffff]")
