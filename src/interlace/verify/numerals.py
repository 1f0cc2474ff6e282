"""Read numbers exactly, as people and models write them, in plain text and in LaTeX."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from interlace.verify.units import LETTERS, NAMES

MOST_DIGITS = 10_000  # of a number
# No pattern here takes more than linear time: spaces are bounded wherever something follows them.
UNITS = rf"{NAMES}|[mghsl]|[ap]\.?m|st|nd|rd|th|usd|[kmgt]b|bc|ad|°[CF]?"
SYMBOLS = "".join(sorted(LETTERS))  # units of one letter
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "k": 10**3,
    "m": 10**6,
    "mn": 10**6,
    "b": 10**9,
    "bn": 10**9,
    "tn": 10**12,
    "lakh": 10**5,
    "crore": 10**7,
    "百": 10**2,
    "千": 10**3,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
}
_SCALE_WORDS = "|".join(s for s in _SCALES if len(s) > 3 or not s.isascii())
_NUMBER = re.compile(
    r"(?<![A-Za-z\d_.])(?=[-+$€£¥₹.\d])(?P<sign>[-+]?)(?P<currency>[$€£¥₹]\s?)?(?P<minus>-?)"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)?(?P<part>\.\d+)?"
    r"(?:[eE](?P<power>[-+]?\d+))?(?:\s{0,4}/\s{0,4}(?P<below>-?\d+(?:\.\d+)?))?"
    rf"(?P<scale>(?:[\s{{}}]{{0,6}}(?:{_SCALE_WORDS})s?(?![A-Za-z])){{1,3}}"
    rf"|(?(currency)[\s{{]{{0,3}})(?-i:[kKMB]|bn|mn|tn)(?![A-Za-z]))?"
    rf"(?P<percent>\s?\\?%)?(?!\.\d)(?:(?=(?:{UNITS})\b)|(?![A-Za-z\d_]))",
    re.IGNORECASE,
)
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–‐‑‒―﹣⁃", "-"),
        **{chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)},  # the full width of ASCII
        **dict.fromkeys("\u00a0\u2009\u202f\u2007", "\u2009"),
        "⋅": "·",
        "。": ". ",
        "、": ", ",
    }
)
_LONG_DASH = re.compile(r"(?<=\S)—|—(?![\d$.])")  # one that parts words; before a number it is a minus
_FONTS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf)?|math(?:rm|bf|it|sf)|mbox|operatorname|underline|left|right|[bB]igg?[lr]?|displaystyle|"
    r"q?quad)(?![A-Za-z])"
)
_RAISED = re.compile("[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_DEGREES = re.compile(r"\^\s{0,4}(?:\{\s{0,4}\\circ\s{0,4}\}|\\circ)|\\degree\b")
_UNIT_POWER = re.compile(
    rf"(?<![\\A-Za-z])([A-Za-z]{{2,16}}|[{SYMBOLS}])\.?\s{{0,4}}\}}?\$?\^\s{{0,4}}\{{?\s{{0,4}}-?\d\s{{0,4}}\}}?"
)
_GROUPS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:[ \u2009'_]\d{3})+(?![-\d])")
_LATEX_FRACTION = re.compile(
    r"\\(?:[dtcs]?|nice)frac\s{0,4}(?:\{\s{0,4}(-?[\d,]+(?:\.\d+)?)°?\s{0,4}\}|(\d))\s{0,4}"
    r"(?:\{\s{0,4}(-?[\d,]+(?:\.\d+)?)°?\s{0,4}\}|(\d))"
)
_OVER = re.compile(r"(?<![\w}])\{?\s{0,4}(-?\d+)\s{0,4}(?:\\over\s{0,4}|\}\s{0,4}/\s{0,4}\{)(-?\d+)\s{0,4}\}?")
_POWER = r"10\s{0,4}(?:\^|\*\*)\s{0,4}(?:\{\s{0,4}([-+]?\d+)\s{0,4}\}|([-+]?\d+))"
_TIMES_POWER = re.compile(rf"(?<=\d)\s{{0,4}}(?:\\times|\\cdot|[×*·xX])\s{{0,4}}{_POWER}")
_TEN_TO = re.compile(rf"(?<![\w.^{{]){_POWER}")
_PERIOD = re.compile(
    r"(?<!\d)(\d{0,60})\.(\d{0,60})(?:\\(?:overline|bar|dot)\s{0,4}\{?(\d{1,60})\}?|\((\d{1,60})\))(?!\\dot)"
)
_MIXED = re.compile(r"(?<![\w./,])(-?\d+)\s{1,4}(?:\{?\s{0,4}and\s{0,4}\}?\s{1,4})?(\d+)\s{0,4}/\s{0,4}(\d+)(?![\w/])")
_PARTS = {"half": 2, "third": 3, "quarter": 4}
_AND_A = re.compile(rf"(?<=\d)\s{{1,4}}and\s{{1,4}}a\s{{1,4}}({'|'.join(_PARTS)})\b", re.IGNORECASE)
_SAID_MINUS = re.compile(r"(?<![\d)}]\s)(?<![\w)}\\])\\?(?:minus|negative)\s{1,4}(?=[\d$.\\(])", re.IGNORECASE)
# A sign that stands at the beginning or behind a sign: what parts it from its number is dropped.
_APART = re.compile(r"(^|[=≈(\[{,:;$*<>±+])(\s{0,4})-[\s({}$]{0,12}(?=\.?\d|[$€£¥₹]\s?\d|\\(?:[dtcs]?|nice)frac)")


class Numeral(NamedTuple):
    """A number, and its place in the plain text."""

    value: Fraction
    start: int
    end: int
    by_letter: bool  # 5k, which may be 5 times k; not $5k


def one_sign(text: str) -> str:
    """Return a text with one spelling for each sign: dashes, full-width characters, narrow spaces."""
    return text if text.isascii() else _LONG_DASH.sub(", ", text).replace("—", "-").translate(_SIGNS)


def all_numbers(text: str) -> list[Fraction]:
    """Return every number of a text, in order; none if one has more digits than any answer."""
    return [n.value for n in numerals(plain(text))]


def numerals(text: str) -> list[Numeral]:
    """Return every number of a plain text, in order; none if one has more digits than any answer."""
    found = []
    for match in _NUMBER.finditer(text):
        if match["whole"] is None and match["part"] is None:
            continue
        if match.end() - match.start() > MOST_DIGITS:
            return []
        below = _fraction(match["below"]) if match["below"] else Fraction(1)
        if below == 0 or len(match["power"] or "") > 6 or abs(power := int(match["power"] or 0)) > 300:
            continue
        value = _fraction((match["whole"] or "0").replace(",", "") + (match["part"] or ""))
        value *= Fraction(10) ** power / below * _scale(match["scale"] or "")
        minus = match["minus"] or match["sign"] == "-"
        letter = bool(match["scale"]) and match["scale"] in "kKMB" and not match["currency"]
        found.append(Numeral(-value if minus else value, *match.span(), letter))
    return found


def _fraction(digits: str) -> Fraction:
    """Return digits of any length as a number; int() refuses more than 4,300 digits."""
    return Fraction(Decimal(digits))


def _scale(words: str) -> int:
    """Return the factor that words mean: 100,000 for "hundred thousand"."""
    product = 1
    for word in re.findall(r"[^\W\d_]+", words.lower()):
        product *= _SCALES[word] if word in _SCALES else _SCALES[word.removesuffix("s")]
    return product


def plain(text: str) -> str:
    """Return a text with fractions, powers of ten, units, digit groups and signs of LaTeX and unicode made plain."""
    text = one_sign(text)
    if not text.isascii():
        text = _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0]).replace('−', '-')}}}", text)
        text = "".join(_vulgar(c) for c in text)
    text = text.replace("\\$", "$").replace("{,}", ",")
    text = re.sub(r",\s?\\[!,]\s?(?=\d)", ",", text).replace("\\!", "")
    text = _AND_A.sub(lambda m: f" 1/{_PARTS[m[1].lower()]}", text)
    text = re.sub(r"\\not\s{0,4}=|(?<!\d)!=|\\neq?(?![A-Za-z])", "≠", text)
    text = re.sub(r"\\approx(?![A-Za-z])|≈", "=", text)
    text = _FONTS.sub(" ", re.sub(r"\\,|\\ ", "\u2009", text))
    text = _UNIT_POWER.sub(r"\1", _DEGREES.sub("° ", text))
    text = _GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text).replace("\u2009", " ")
    text = _APART.sub(r"\1\2-", _SAID_MINUS.sub("-", text))
    text = _LATEX_FRACTION.sub(_quotient, text)
    text = _OVER.sub(r"\1/\2", _PERIOD.sub(_periodic, text))
    text = _TIMES_POWER.sub(lambda m: f"e{m[1] or m[2]}", text)
    text = _TEN_TO.sub(lambda m: f"1e{m[1] or m[2]}", text)
    return _MIXED.sub(_improper, text)


def _quotient(match: re.Match[str]) -> str:
    """Return \\frac{1}{2} as 1/2, with a space before it in 3\\frac12, which is a mixed number."""
    space = " " if match.string[match.start() - 1 : match.start()].isalnum() else ""
    return f"{space}{match[1] or match[2]}/{match[3] or match[4]} ".replace(",", "")


def _periodic(match: re.Match[str]) -> str:
    """Return a periodic number as a fraction: 0.1\\overline{6} as 15/90."""
    whole, fixed, period = match[1], match[2], match[3] or match[4]
    below = (10 ** len(period) - 1) * 10 ** len(fixed)
    above = int(whole + fixed + period) - int(whole + fixed or "0")
    return f"{above}/{below} "


def _vulgar(letter: str) -> str:
    """Return ½ as 1/2 with a space before it, since 3½ is a mixed number."""
    whole = unicodedata.normalize("NFKC", letter)
    return " " + whole.replace("\u2044", "/") + " " if "\u2044" in whole else letter


def _improper(match: re.Match[str]) -> str:
    if any(len(g) > 100 for g in match.groups()):
        return match[0]
    whole, above, below = (int(g) for g in match.groups())
    if not below or above >= below:
        return match[0]
    sign = "-" if match[1].startswith("-") else ""
    return f"{sign}{abs(whole) * below + above}/{below}"
