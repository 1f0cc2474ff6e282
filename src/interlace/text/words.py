"""Texts as words, for what holds them against each other."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # written without spaces: a sign is a word
WORD = re.compile(rf"[^\W{CJK}]+|[{CJK}]|-(?=\d)|(?<=\s)-(?=\s)|[^\w\s-]")
SIGNS = "#%&*/^-_"  # that unicode takes for punctuation


def words_of(text: str) -> tuple[str, ...]:
    """Words in lower case, and signs, such as those of arithmetic; punctuation and spaces do not count."""
    found = WORD.findall(unicodedata.normalize("NFC", text).lower())
    return tuple(w for w in found if len(w) > 1 or w.isalnum() or _counts(w))


@cache
def _counts(sign: str) -> bool:
    """Whether a sign says something: one of mathematics, or a picture; C# is not C."""
    return sign in SIGNS or unicodedata.category(sign) in ("Sm", "So")
