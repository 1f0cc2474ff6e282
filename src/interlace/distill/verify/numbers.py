"""Final answers that are numbers: found in a text, read exactly, compared."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from interlace.distill.verify.final import final_answer, find
from interlace.distill.verify.spelling import normal
from interlace.distill.verify.units import NAMES

UNITS = rf"{NAMES}|[mghsl]|am|pm|st|nd|rd|th|usd|°[CF]?"
# No pattern here takes more than linear time: spaces are bounded wherever something follows them.
SCALES = {"thousand": 3, "k": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER = re.compile(
    r"(?<![\w.])(?=[-+−–$€£¥.\d])(?P<sign>[-+−–]?)(?:[$€£¥]\s?)?(?P<minus>[-−–]?)"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?:[eE](?P<power>[-+]?\d+))?"
    rf"(?:\s{{0,4}}/\s{{0,4}}(?P<below>-?\d+(?:\.\d+)?))?(?:\s{{0,4}}(?P<scale>{'|'.join(SCALES)})\b)?"
    rf"(?P<percent>\s?\\?%)?(?!\.\d)(?:(?=(?:{UNITS})\b)|(?!\w))",
    re.IGNORECASE,
)
LATEX_FRACTION = re.compile(
    r"\\[dtc]?frac\s{0,4}(?:\{\s{0,4}(-?[\d,]+(?:\.\d+)?)\s{0,4}\}|(\d))\s{0,4}(?:\{\s{0,4}(-?[\d,]+(?:\.\d+)?)\s{0,4}\}|(\d))"
)
OVER = re.compile(r"(?<![\w}])\{?\s{0,4}(-?\d+)\s{0,4}(?:\\over\s{0,4}|\}\s{0,4}/\s{0,4}\{)(-?\d+)\s{0,4}\}?")
POWER_OF_TEN = re.compile(
    r"(?<=\d)\s{0,4}(?:\\times|\\cdot|×|\*|·)\s{0,4}10\s{0,4}(?:\^|\*\*)\s{0,4}(?:\{\s{0,4})?([-+−]?\d+)\}?"
)
TEN_TO = re.compile(r"(?<![\w.^{])10\s{0,4}(?:\^|\*\*)\s{0,4}(?:\{\s{0,4}([-−]?\d+)\s{0,4}\}|([-−]?\d+))")
RAISED = re.compile(r"(?<=\d)\s{0,4}(?:\\times|\\cdot|×|\*|·)\s{0,4}10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
PERIOD = re.compile(r"(?<!\d)(\d{1,60})\.(\d{0,60})\\overline\s{0,4}\{(\d{1,60})\}")
MIXED = re.compile(r"(?<![\w./,])(-?\d+)\s{1,4}(?:and\s{1,4})?(\d+)\s{0,4}/\s{0,4}(\d+)(?![\w/])")
GROUPS = re.compile(
    r"(?<![\w.,])\d{1,3}(?:(?:[\u00a0\u2009\u202f'_]|\\ )\d{3})+(?!\d)|(?<![\w.,])\d{1,3}(?: \d{3}){2,}(?!\d)"
)
DEGREES = re.compile(r"\^\s{0,4}(?:\{\s{0,4}\\circ\s{0,4}\}|\\circ)|\\degree\b")
UNIT_POWER = re.compile(
    rf"(?<=\d)(\s{{0,4}}\\?,?\s{{0,4}}(?:\\(?:text|mathrm)\s{{0,4}}\{{\s{{0,4}})?(?:{UNITS})(?:/(?:{UNITS}))?\s{{0,4}}\}}?)"
    r"(?:\^\s{0,4}\{?[23]\}?|[²³])\s{0,4}\}?",
    re.IGNORECASE,
)
NO_NUMBER = re.compile(
    r"\\(?:pi|sqrt|log|ln|sin|cos|tan|infty|d?binom|pm|mp|ge|geq|le|leq|ne|neq|lt|gt|in|cup|cap|overline)(?![A-Za-z])"
    r"|[√π∞^±∓<>≤≥≠]|(?<=[\w)])\*\*(?=[\w({-])|\d!|\d\s{0,4}:\s{0,4}\d|\d_\s{0,4}\{?\s{0,4}\d"
    r"|\\[dtc]?frac(?![A-Za-z])"
)
SEVERAL = re.compile(r"(?<=\d)\s{0,4}(?:or|to)\s{0,4}(?=[-$\d])|\bbetween\b", re.IGNORECASE)
BOTH = re.compile(r"(?<=\d)\s{1,4}and\s{1,4}(?=[-$\d])(?!\d+\s{0,4}/)", re.IGNORECASE)
COMPOUND = re.compile(r"\d\s{0,4}(?:feet|foot|ft|hours?|hrs?|h|minutes?|min)\s{1,4}\d", re.IGNORECASE)
MOST_DIGITS = 10_000  # of a number


def final_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, exactly, or None.

    It is what follows the last "####", \\boxed{}, "answer is" or "Answer:", in the box or in the first line that is not
    empty; where none of these is there, the last number of the text. Thousands' commas and spaces, currency, units,
    fractions, powers of ten, "million" and unicode's signs are read. A percentage is the number before the sign. An
    answer that holds a root, a power or a constant is none, and neither is a box of several numbers.
    """
    line, place = find(text)
    if place == "nowhere":
        if SEVERAL.search(_last_sentence(text)) or _is_none(_last_sentence(text)):
            return None
        numbers = all_numbers(text)
        return numbers[-1] if numbers else None
    if place == "box":
        return _alone(line)
    first = line.split(". ")[0]
    if _is_none(first.rsplit("=", 1)[-1]) or any(p.search(first) for p in (SEVERAL, BOTH, COMPOUND)):
        return None
    numbers = all_numbers(line.rsplit("=", 1)[-1]) or all_numbers(line)
    return numbers[0] if numbers else None


def _last_sentence(text: str) -> str:
    """The end of a text, from its last line or sentence on."""
    line = text.strip().rsplit("\n", 1)[-1][-400:]
    return line.rstrip(".").rsplit(". ", 1)[-1] if len(line) > 40 else line


def _is_none(text: str) -> bool:
    """Whether a text holds what is no number, or more than one."""
    return NO_NUMBER.search(_plain(text)) is not None


def _alone(text: str) -> Fraction | None:
    """The only number of a text, or of what stands after its last sign of equality."""
    if re.search(r"=[^=]*,[^=]*=", text):  # several equations
        return None
    last = text.rsplit("=", 1)[-1]
    numbers = all_numbers(last)
    return numbers[0] if len(numbers) == 1 and not _is_none(last) and not SEVERAL.search(last) else None


def all_numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order; none where one has more digits than any answer."""
    text = MIXED.sub(_improper, _plain(text))
    found = []
    for match in NUMBER.finditer(text):
        if match["whole"] is None and match["part"] is None:
            continue
        if match.end() - match.start() > MOST_DIGITS:
            return []
        value = _fraction((match["whole"] or "0").replace(",", "") + (match["part"] or ""))
        below = _fraction(match["below"]) if match["below"] else None
        if len(match["power"] or "") > 6 or below == 0:
            continue
        power = int(match["power"] or 0) + SCALES.get((match["scale"] or "").lower(), 0)
        if abs(power) > 300:
            continue
        value *= Fraction(10) ** power
        if below is not None:
            value /= below
        found.append(-value if match["minus"] or match["sign"] not in ("", "+") else value)
    return found


def _fraction(digits: str) -> Fraction:
    """A number of any length: int() refuses more than 4,300 digits."""
    return Fraction(Decimal(digits))


def _plain(text: str) -> str:
    """Fractions of LaTeX and unicode, powers of ten, units and groups of digits as NUMBER knows them."""
    text = text.replace("\\$", "$").replace("\\,", "").replace("{,}", ",").replace("\\!", "")
    text = GROUPS.sub(lambda m: re.sub(r"[\s'_\\]", "", m[0]), text)
    text = PERIOD.sub(_periodic, DEGREES.sub(" ", text))
    text = UNIT_POWER.sub(r"\1", text)
    text = re.sub(r"(\d)\s{0,4}(?=\\[dtc]?frac\s{0,4}[{\d])", r"\1 ", text)
    text = LATEX_FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}".replace(",", ""), text)
    text = OVER.sub(r"\1/\2", text)
    text = POWER_OF_TEN.sub(lambda m: f"e{m[1].replace('−', '-')}", text)
    text = RAISED.sub(lambda m: f"e{unicodedata.normalize('NFKC', m[1]).replace('−', '-')}", text)
    text = TEN_TO.sub(lambda m: f"1e{(m[1] or m[2]).replace('−', '-')}", text)
    return "".join(_vulgar(c) for c in text) if not text.isascii() else text


def _periodic(match: re.Match[str]) -> str:
    """0.1\\overline{6} as 15/90."""
    whole, fixed, period = match.groups()
    below = (10 ** len(period) - 1) * 10 ** len(fixed)
    above = int(whole + fixed + period) - int(whole + fixed)
    return f"{above}/{below}"


def _vulgar(letter: str) -> str:
    """½ as 1/2, a space before it, since 3½ is a mixed number."""
    whole = unicodedata.normalize("NFKC", letter)
    return " " + whole.replace("\u2044", "/") if "\u2044" in whole else letter


def _improper(match: re.Match[str]) -> str:
    if any(len(g) > 100 for g in match.groups()):
        return match[0]
    whole, above, below = (int(g) for g in match.groups())
    if not below or above >= below:
        return match[0]
    sign = "-" if match[1].startswith("-") else ""
    return f"{sign}{abs(whole) * below + above}/{below}"


def same_number(answer: str, gold: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """(whether two texts end in the same number, or in the same text, why not).

    tolerance: relative; 0 compares exactly, as fractions.
    """
    one, other = normal(final_answer(answer)), normal(final_answer(gold))
    if one == other and one:
        return True, ""
    said, known = final_number(answer), final_number(gold)
    if known is None:
        return False, "the gold answer holds no number"
    if said is None:
        return False, "the answer holds no number"
    if said == known or (tolerance and abs(said - known) <= Fraction(tolerance) * abs(known)):
        return True, ""
    return False, "another number"
