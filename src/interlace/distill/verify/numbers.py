"""Final answers that are numbers: found in a text, read exactly, compared."""

from __future__ import annotations

import re
from fractions import Fraction

MARKS = (r"####", r"\\boxed\s*\{", r"(?:final )?answer(?: is|:)?")  # what an answer stands after, surest first
NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+−]?)\s?[$€£¥]?\s?(?P<minus>[-−]?)"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?:[eE](?P<power>[-+]?\d{1,3}))?"
    r"(?:\s*/\s*(?P<below>\d+(?:\.\d+)?))?\s?(?P<percent>\\?%)?(?![\w]|\.\d)"
)
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+(?:\.\d+)?)\s*\}\s*\{\s*(\d+(?:\.\d+)?)\s*\}")
MIXED = re.compile(r"(?<![\w./,])(-?\d+)\s+(\d+)\s*/\s*(\d+)(?![\w/])")


def final_number(text: str) -> Fraction | None:
    """The number that a text ends with: after its last "####", in its last \\boxed{}, after "answer is", or the last.

    Thousands' commas, currency, fractions, powers of ten and unicode's minus are read. A percentage is the number
    before the sign.
    """
    for mark in MARKS:
        found = list(re.finditer(mark, text, re.IGNORECASE))
        if found:
            after = text[found[-1].end() :]
            numbers = all_numbers(after[: after.find("\n")] if "\n" in after.strip() and mark == MARKS[0] else after)
            if numbers:
                return numbers[0]
    numbers = all_numbers(text)
    return numbers[-1] if numbers else None


def all_numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order."""
    text = LATEX_FRACTION.sub(r"\1/\2", text.replace("\\$", "$").replace("\\,", "").replace("{,}", ","))
    text = MIXED.sub(_improper, text)
    found = []
    for match in NUMBER.finditer(text):
        if match["whole"] is None and match["part"] is None:
            continue
        value = Fraction((match["whole"] or "0").replace(",", "") + (match["part"] or ""))
        if match["power"] and abs(int(match["power"])) <= 300:
            value *= Fraction(10) ** int(match["power"])
        if match["below"]:
            below = Fraction(match["below"])
            if not below:
                continue
            value /= below
        negative = match["sign"] in ("-", "−") or match["minus"] in ("-", "−")
        found.append(-value if negative else value)
    return found


def _improper(match: re.Match[str]) -> str:
    whole, above, below = (int(g) for g in match.groups())
    if not below or above >= below:
        return match[0]
    sign = "-" if match[1].startswith("-") else ""
    return f"{sign}{abs(whole) * below + above}/{below}"


def same_number(answer: str, gold: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """(whether two texts end in the same number, why not).

    tolerance: relative; 0 compares exactly, as fractions.
    """
    said, known = final_number(answer), final_number(gold)
    if known is None:
        return False, "the gold answer holds no number"
    if said is None:
        return False, "the answer holds no number"
    if said == known or (tolerance and abs(said - known) <= Fraction(tolerance) * abs(known)):
        return True, ""
    return False, "another number"
