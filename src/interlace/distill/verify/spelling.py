"""Answers as they are written: where one stands in a text, and which spellings are the same text."""

from __future__ import annotations

import re
import unicodedata

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s{0,4}\{([^{}]*)\}")
_SPACES = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|big|Big)(?![A-Za-z])|\\[,;:! ]|[\s~]+")
_ONLY_WORDS = re.compile(r"(?:[^\W\d_]|[\s,;.()'’-])+")
_WORD = re.compile(r"[^\W\d_]{3,}|[^\W\d_][a-z]|\bNO\b")
_SAME = (
    ("\\dfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\geqslant", "\\ge"),
    ("\\leqslant", "\\le"),
    ("\\geq", "\\ge"),
    ("\\leq", "\\le"),
    ("\\neq", "\\ne"),
    ("≥", "\\ge"),
    ("≤", "\\le"),
    ("≠", "\\ne"),
    ("−", "-"),
    ("–", "-"),
    ("±", "\\pm"),
    ("∪", "\\cup"),
    ("∞", "\\infty"),
    ("\\varnothing", "\\emptyset"),
    ("∅", "\\emptyset"),
    ("\\%", "%"),
    ("\\$", "$"),
)


def inside_box(text: str) -> str:
    """What stands in the last \\boxed{} of a text; "" where there is none that ends."""
    start = text.find("{", text.rfind("\\boxed")) if "\\boxed" in text else -1
    depth = 0
    for i in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[start + 1 : i]
    return ""


def boxed(text: str) -> str:
    """What stands in the last \\boxed{} of a text, or after its last "####", or after "answer is", or all of it."""
    if inside := inside_box(text):
        return inside
    for mark in (r"####", r"answer(?: is|:)"):
        found = list(re.finditer(mark, text, re.IGNORECASE))
        if found:
            after = text[found[-1].end() :].strip().splitlines()
            return after[0].rstrip(". ") if after else ""
    return text.strip()


def normal(text: str) -> str:
    """One spelling of texts that only differ in how they are set: spaces, fonts, signs, a closing full stop.

    Words are in lower case; the letters of a formula and the two of a line such as AB keep their case.
    """
    s = unicodedata.normalize("NFC", text).strip().strip("*").strip()
    if len(s) > 1 and s.startswith("$") and s.endswith("$"):
        s = s.strip("$")
    s = re.sub(r"^\\[(\[]|\\[)\]]$", "", s).strip().rstrip(".").strip()
    s = _WRAPPED.sub(r"\1", s)
    for one, other in _SAME:
        s = s.replace(one, other)
    s = _SPACES.sub(" ", s).strip()
    s = re.sub(r"(?<![^\W_]) | (?![^\W_])", "", s)  # but 3 1/2 is not 31/2
    s = re.sub(r"([_^])\{(\w)\}", r"\1\2", s)
    s = re.sub(r"^\((\w)\)$", r"\1", s)
    return _WORD.sub(lambda m: m[0].casefold(), s) if _ONLY_WORDS.fullmatch(s) else s
