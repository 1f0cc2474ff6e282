"""Split texts into words, to compare texts with each other."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # written without spaces: a sign is a word
WORD = re.compile(rf"[^\W{CJK}]+|[{CJK}]|-(?=\d)|(?<=\s)-(?=\s)|[^\w\s-]")
SIGNS = "#%&*/^-_"  # that unicode takes for punctuation


def words_of(text: str) -> tuple[str, ...]:
    """Return words in lower case, and signs such as those of arithmetic; punctuation and spaces do not count."""
    found = WORD.findall(unicodedata.normalize("NFC", text).lower())
    return tuple(w for w in found if len(w) > 1 or w.isalnum() or _counts(w))


@cache
def _counts(sign: str) -> bool:
    """Return whether a sign has a meaning of its own: one of mathematics, or a picture; C# is not C."""
    return sign in SIGNS or unicodedata.category(sign) in ("Sm", "So")
