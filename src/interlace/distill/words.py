"""Texts as words, for what holds them against each other."""

from __future__ import annotations

import re

CJK = "\u3040-\u30ff\u3400-\u9fff"  # written without spaces: a sign is a word
WORD = re.compile(rf"[^\W{CJK}]+|[{CJK}]|[+*/=<>^%]|-(?=\d)|(?<=\s)-(?=\s)")


def words_of(text: str) -> tuple[str, ...]:
    """Words in lower case, and the signs of arithmetic; other punctuation and spaces do not count."""
    return tuple(WORD.findall(text.lower()))
