"""Final answers that are numbers: find them in a text, reject what only contains a number, and compare them."""

from __future__ import annotations

import re
from fractions import Fraction

from interlace.verify.final import final_answer, find
from interlace.verify.numerals import SYMBOLS, UNITS, Numeral, all_numbers, numerals, one_sign, plain
from interlace.verify.spelling import normal

__all__ = ["all_numbers", "final_number", "same_number"]

# No pattern here takes more than linear time: spaces are bounded wherever something follows them.
_TAG = re.compile(r"<(?!answer>)/?[A-Za-z][\w-]{0,20}\s?/?>|<[|｜][^<>\n|｜]{0,40}[|｜]>|<<[^<>\n]{0,80}>>")
_EMPHASIS = re.compile(r"(?<![\dA-Za-z)*])\*{1,3}(?=\S)|(?<=[^\s*])\*{1,3}(?![\w(*-])")
_BULLET = re.compile(r"^[ \t]{0,8}[-*•]\s(?=.*[^\W\d_])", re.MULTILINE)

# What may stand beside a number: words, units, labels, punctuation; no word that calculates or compares.
_NO_WORD = (
    "(?:a?(?:rc)?(?:sin|cos|tan|cot|csc)h?|arcsec|log|ln|lg|exp|sqrt|cbrt|root|floor|ceil(?:ing)?|abs|gcd|lcm|max|base|"
    "plus|minus|times|choose|than|between)(?=[\\s(]{0,4}(?:of\\s{1,4})?[$\\d\x00])|factorial|modulo?|multiplied by|"
    "divided by|raised to|not(?=[^\x00]{0,40}\x00)|(?<=\x00 )(?:squared|cubed|pi)|xyz|abc"
)
_SHORT = (
    "of|in|is|at|to|by|an|as|be|we|he|it|so|or|on|up|us|me|my|no|do|go|if|mr|ms|tv|co|rs|"
    "de|la|le|el|en|un|es|et|il|da|du"
)
# of Latin, Cyrillic, Arabic, Devanagari; Greek ones name numbers
_LETTERS = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u052f\u0620-\u064a\u0904-\u0939"
_LETTER = f"[{_LETTERS}]"
_IDEOGRAPHS = "[\u3040-\u9fff\uac00-\ud7af]+"
_WORD = re.compile(
    rf"(?<![\\^{_LETTERS}])(?!(?i:{_NO_WORD})(?!{_LETTER}))"
    rf"(?:{_LETTER}{{3,}}|(?i:{_SHORT})|a(?=\s{{1,4}}(?:{_LETTER}{{3}}|\x00)))(?:['’][a-z]{{1,2}})?(?![\w(^])"
    rf"|{_IDEOGRAPHS}"
)
_UNIT = re.compile(rf"(?<![\\^A-Za-z])(?:(?i:{UNITS})|[{SYMBOLS}])(?![A-Za-z\d(^_])")
_LABEL = re.compile(r"(?<![\w\\])(?:(?<=[a-z] )[A-Z]|[A-Z]\d{1,3})(?![\w(^])|\(?[A-Ha-h]\)(?=\s)")  # store B, Q3, (C)
_SIGN = re.compile(
    r"(?<=[A-Za-z])\s{0,3}(?:\\cdot|·|-)\s{0,3}(?=[A-Za-z])|/[\s{]{0,3}(?=[A-Za-z]|\Z)|(?<=[\w\x00])-(?=[\w\x00]|\Z)"
    r"|(?<![\d\x00])(?<![\d\x00]\s):|:(?=\s?\Z)|(?<=\{)-(?=[A-Za-z])|(?<!\S)\|(?!\S)|\\(?:[lc]?dots|implies|therefore|Rightarrow|[;:!])(?![A-Za-z])|\\?[%$#&]"
    r"|\\[()\[\]{}]|[\s,.;?\"'“”‘’`()\[\]{}€£¥₹¢°~…•\x00\u2190-\u21ff\u2600-\u2714\u2717-\u2794\u2798-\u27bf]"
    r"|[\ufe0f\U0001f300-\U0001faff]"
)
_BESIDE = re.compile("|".join(p.pattern for p in (_SIGN, _WORD, _UNIT)))
_CLAUSE = re.compile(
    r"[.!?;]\s|(?<=[A-Za-z]):\s|,\s(?!\s{0,4}(?:and|or)\s)(?=\s{0,4}[^\W\d_])|\s\((?!mod)|\s-\s(?=[A-Za-z]{2})",
    re.IGNORECASE,
)
_CLAUSE_OR_COMMA = re.compile(rf"{_CLAUSE.pattern}|,\s", re.IGNORECASE)
_JOIN = re.compile("or|to|and|of|by|over|through|plus|minus|times|choose|mod|base|remainder")
_ANOTHER_NAME = re.compile(r"(?:,|\b(?:and|or))\s{0,4}[A-Za-z](?:_\w)?\s{0,4}=")


def final_number(text: str) -> Fraction | None:
    """Return the number that a text gives as its answer, exactly, or None.

    It follows the last "####", \\boxed{}, "answer is" or "Answer:", in the box or in the first line that holds words or
    numbers. Without any of these it is the last number of the text.

    Thousands' commas and spaces, currency, units, fractions, powers of ten, "million" and unicode's signs are read. A
    percentage is the number before the sign. Units, words and a name before a sign of equality may stand beside it. An
    answer that holds anything else (a root, a letter, an operation, a second number) is no number.
    """
    said, place = find(_untagged(text))
    if place == "box":
        return _in_box(said)
    return _in_line(said) if place == "line" else _last(said)


def _untagged(text: str) -> str:
    """Return a text without tags and bullets, with one spelling for each sign."""
    raised = {"<sup>": "^", "<sub>": "_"}
    text = _TAG.sub(lambda m: raised.get(m[0].lower(), " " if m[0][1] != "/" else ""), one_sign(text))
    return _BULLET.sub("", text)


def _in_box(text: str) -> Fraction | None:
    """Return the only number of a text, or of what stands after its last sign of equality."""
    *before, last = plain(_EMPHASIS.sub("", text)).split("=")
    if any(re.search(r",(?!\d{3})|;|\b(?:and|or)\b", part) for part in before[1:]):  # several equations
        return None
    found = numerals(last)
    if len(found) != 1 or found[0].by_letter:
        return None
    before_it, after = _around(last, found, 0)
    attached = re.match("\x00[A-Za-z](?![A-Za-z/])", after)  # 5m, which may be 5 times m
    return found[0].value if not attached and _says_nothing(_LABEL.sub("", before_it + after)) else None


def _in_line(text: str) -> Fraction | None:
    """Return the first number of the first clause that holds one."""
    text = plain(_EMPHASIS.sub("", text))
    for clause in _CLAUSE.split(text):
        if re.search(r"\d", clause):
            part, found = _after_equality(clause)
            break
    else:
        return None
    if not found or _ANOTHER_NAME.search(text):
        return None
    before, after = _around(part, found, 0)
    if len(found) > 1 and found[1].value != found[0].value:
        words = re.findall(r"[^\W\d_]+", after)
        if (len(words) < 4 and words[-1:] in (["or"], ["to"])) or all(_JOIN.fullmatch(w) or _is_unit(w) for w in words):
            return None
    return found[0].value if _says_nothing(_LABEL.sub("", before) + _up_to_word(after)) else None


def _last(text: str) -> Fraction | None:
    """Return the last number of a text."""
    if "\n" not in text and not _WORD.search(text):
        return _in_box(text)
    for line in reversed(text.split("\n")):
        for clause in reversed(_CLAUSE_OR_COMMA.split(plain(_EMPHASIS.sub("", _without_reason(line))))):
            part, found = _after_equality(clause)
            if found:
                return _last_of(part, found)
    return None


def _without_reason(line: str) -> str:
    """Return a line up to "because", unless an equation follows."""
    said, because, reason = line.partition(" because ")
    return said if because and "=" not in reason else line


def _last_of(part: str, found: list[Numeral]) -> Fraction | None:
    """Return the last number of a clause, if nothing with a meaning stands between it and the nearest words."""
    before, after = _around(part, found, len(found) - 1)
    words = re.findall(r"[^\W\d_]+", before) if len(found) > 1 else []
    if (words and all(w in ("or", "to") or _is_unit(w) for w in words)) or re.search(r"\bbetween\s{1,4}[$\d]", part):
        return None
    near = _WORD.split(before + "\x00")[-1] + _up_to_word(after)
    return found[-1].value if _says_nothing(_LABEL.sub("", near)) else None


def _after_equality(text: str) -> tuple[str, list[Numeral]]:
    """Return what stands after the last sign of equality that a number follows, and its numbers."""
    for part in reversed(text.split("=")):
        if found := numerals(part):
            return part, found
    return "", []


def _around(text: str, found: list[Numeral], place: int) -> tuple[str, str]:
    """Return what stands between a number and its neighbours; \\x00 stands for the number itself."""
    before = "\x00" + text[found[place - 1].end : found[place].start] if place else text[: found[place].start]
    after = text[found[place].end : found[place + 1].start] + "\x00" if found[place + 1 :] else text[found[place].end :]
    return before, "\x00" + after


def _is_unit(word: str) -> bool:
    """Return whether a word between two numbers is a unit; "in" joins numbers more often than it measures."""
    return word != "in" and _UNIT.fullmatch(word) is not None


def _up_to_word(text: str) -> str:
    return _WORD.split(text, maxsplit=1)[0]


def _says_nothing(text: str) -> bool:
    """Return whether there are only words, units and punctuation."""
    return not _BESIDE.sub("", text)


def same_number(answer: str, gold: str, tolerance: float = 0.0) -> tuple[bool, str]:
    """Return (whether two texts end in the same number, or in the same text, why not).

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
