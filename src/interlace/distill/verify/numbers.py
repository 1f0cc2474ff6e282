"""Final answers that are numbers: found in a text, read exactly, compared."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from interlace.distill.verify.expressions import inside_box

SAID = re.compile(
    r"(?P<hash>#{4})|(?P<box>\\boxed(?=\s*\{))|\banswer\W{0,6}\s*(?:is|=)\W*?(?=[^\W:]|[-+−–$\\(.])"
    r"|(?:^|(?<=[.!?]\s))[\W_]*(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer[*_]*\s*:",
    re.IGNORECASE | re.MULTILINE,
)
UNITS = "km|cm|mm|m|kg|mg|g|lbs?|oz|mi|ft|in|yd|hrs?|h|min|sec|s|ml|l|mph|kph|am|pm|st|nd|rd|th|usd|°[CF]?"
SCALES = {"thousand": 3, "k": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+−–]?)(?:[$€£¥]\s?)?(?P<minus>[-−–]?)"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?:[eE](?P<power>[-+]?\d+))?"
    rf"(?:\s*/\s*(?P<below>-?\d+(?:\.\d+)?))?(?:\s*(?P<scale>{'|'.join(SCALES)})\b)?"
    rf"(?P<percent>\s?\\?%)?(?!\.\d)(?:(?=(?:{UNITS})\b)|(?!\w))",
    re.IGNORECASE,
)
LATEX_FRACTION = re.compile(
    r"\\[dt]?frac\s*(?:\{\s*(-?\d+(?:\.\d+)?)\s*\}|(\d))\s*(?:\{\s*(-?\d+(?:\.\d+)?)\s*\}|(\d))"
)
POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|×|\*|·)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*)?([-+−]?\d+)\}?")
MIXED = re.compile(r"(?<![\w./,])(-?\d+)\s+(\d+)\s*/\s*(\d+)(?![\w/])")
GROUPS = re.compile(r"(?<![\w.,])\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)|(?<![\w.,])\d{1,3}(?: \d{3}){2,}(?!\d)")
NO_NUMBER = re.compile(r"\\(?:pi|sqrt|log|ln|sin|cos|tan|infty|binom)\b|[√π∞^]|(?<=[\w)])\*\*(?=[\w({-])|\d!")


def final_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, exactly, or None.

    It is what follows the last "####", \\boxed{}, "answer is" or "Answer:", in the box or in the first line that is not
    empty; where none of these is there, the last number of the text. Thousands' commas and spaces, currency, units,
    fractions, powers of ten, "million" and unicode's signs are read. A percentage is the number before the sign. An
    answer that holds a root, a power or a constant is none, and neither is a box of several numbers.
    """
    said = None
    for said in SAID.finditer(text):  # noqa: B007 - the last is used
        pass
    if said is None:
        numbers = all_numbers(text)
        return numbers[-1] if numbers else None
    if said["box"]:
        return _alone(inside_box(text[said.start() :]))
    line = text[said.end() :].strip().split("\n")[0]
    if "\\boxed" in line:
        return _alone(inside_box(line))
    if NO_NUMBER.search(_plain(line).rsplit("=", 1)[-1]):
        return None
    numbers = all_numbers(line.rsplit("=", 1)[-1]) or all_numbers(line)
    return numbers[0] if numbers else None


def _alone(text: str) -> Fraction | None:
    """The only number of a text, or of what stands after its last sign of equality."""
    last = text.rsplit("=", 1)[-1]
    numbers = all_numbers(last)
    return numbers[0] if len(numbers) == 1 and not NO_NUMBER.search(_plain(last)) else None


def all_numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order."""
    text = MIXED.sub(_improper, _plain(text))
    found = []
    for match in NUMBER.finditer(text):
        if match["whole"] is None and match["part"] is None:
            continue
        value = Fraction((match["whole"] or "0").replace(",", "") + (match["part"] or ""))
        power = int(match["power"] or 0) + SCALES.get((match["scale"] or "").lower(), 0)
        if abs(power) > 300 or (match["below"] and not Fraction(match["below"])):
            continue
        value *= Fraction(10) ** power
        if match["below"]:
            value /= Fraction(match["below"])
        found.append(-value if match["minus"] or match["sign"] not in ("", "+") else value)
    return found


def _plain(text: str) -> str:
    """Fractions of LaTeX and unicode, powers of ten and groups of digits as NUMBER knows them."""
    text = text.replace("\\$", "$").replace("\\,", "").replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"(\d)\s*(?=\\[dt]?frac\s*[{\d])", r"\1 ", text)
    text = LATEX_FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}", text)
    text = POWER_OF_TEN.sub(lambda m: f"e{m[1].replace('−', '-')}", text)
    text = GROUPS.sub(lambda m: re.sub(r"\s", "", m[0]), text)
    return "".join(_vulgar(c) for c in text) if not text.isascii() else text


def _vulgar(letter: str) -> str:
    """½ as 1/2, a space before it, since 3½ is a mixed number."""
    whole = unicodedata.normalize("NFKC", letter)
    return " " + whole.replace("\u2044", "/") if "\u2044" in whole else letter


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
