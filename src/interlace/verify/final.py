"""Find where a text gives its answer; numbers and expressions both use this one place."""

from __future__ import annotations

import re
from typing import NamedTuple

from interlace.verify.units import NAMES

# No pattern here takes more than linear time: spaces are bounded wherever something follows them.
_MARK = re.compile(
    r"(?P<box>\\boxed(?=\s{0,4}\{))|<answer>|\banswers?\W{0,6}(?:(?:is|are)\b|=)(?=[\s:*_]{0,24}\S)"
    r"|(?:^|(?<=[.!?]\s))(?:[^\w\n]|_){0,24}(?:(?:so|thus|hence|therefore),?\s{1,4})?(?:(?:the|my)\s{1,4})?"
    r"(?:final\s{1,4}|correct\s{1,4})?answer[*_]{0,4}\s{0,4}:"
    r"|答案[是为為:\s*]{1,8}|^[#*_ ]{1,8}(?:final\s{1,4})?answer[*_ ]{0,8}$|#{4}",
    re.IGNORECASE | re.MULTILINE,
)
_BRACE = re.compile(r"(?P<box>\\boxed\s{0,4}\{)|\\.|(?P<open>\{)|(?P<close>\})")
_NEXT_THOUGHT = re.compile(
    r"\n|[.!?]\s|\b(?:so|thus|hence|therefore|finally|in the end|in total|altogether|answer)\b", re.IGNORECASE
)
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", re.DOTALL)
_INLINE = r"(?:\$(?! )[^$\n]+(?<! )\$(?!\d)|\$ [^$\n]+ \$|\\\([^\n]+?\\\))"
_FORMULAS = re.compile(
    rf"{_INLINE}(?:\s{{0,4}}(?:,|;|,?\s{{0,4}}and|,?\s{{0,4}}or)\s{{0,4}}{_INLINE})*"
    rf"(?:\s{{0,4}}(?:\\?%|°|(?:{NAMES}|[mghsL]|thousand|million|billion|trillion)(?![A-Za-z])))?"
)
_REST = re.compile(
    r"(?<!\bMr)(?<!\bDr)(?<!\bSt)\.\s+(?=[A-Z\\$*(])|,?\s+(?:since|because)\b|,\s+(?:as|so|which|where|when|i\.e\.)(?!\w)"
)
_FILLER = re.compile(
    r"^(?:(?:therefore|thus|then|simply|just|exactly|option|choice|given by)\b[\s:,]{0,4}){0,3}(?:[-•] (?=\$))?"
)
_TAG = re.compile(r"</\w|<\|\w{2,}\|>")
_LABEL = re.compile(
    r"(?:\\(?:text|math)(?:bf|rm|it)?\s{0,4}\{\s{0,4})?\*{0,2}(?:\(([A-J])\)|([A-J])[.)](?=[\s}~*]))[\s}~*:.]{1,8}(?=[\w\\$(.√π-])"
)


class Said(NamedTuple):
    """The text of an answer, and where it stood: in a "box", on the "line" of a mark, or "nowhere" without one."""

    text: str
    place: str


def find(text: str) -> Said:
    """Return what stands in the last \\boxed{}, or on the line that the last "####", "answer is" or "Answer:" begins.

    Boxes that stand in one sentence are several values. Without any mark, the whole text is the answer.
    """
    mark = None
    for mark in _MARK.finditer(text):  # noqa: B007 - the last is used
        pass
    if mark is None:
        return Said(text.strip(), "nowhere")
    if mark["box"]:
        return Said(", ".join(dict.fromkeys(_boxes(text, mark.start()))), "box")
    after = text[mark.end() :].lstrip(' \t\r\n:*_`=≈"“')
    if display := _DISPLAY.match(after):
        return Said((display[1] or display[2]).strip(), "line")
    line = next((line for line in after.split("\n") if re.search(r"\w", line)), "")  # no rule below a heading
    return Said(_TAG.split(line)[0].rstrip(" \t\r*_`"), "line")


def final_answer(text: str) -> str:
    """Return the answer of a text as it is written: from a marked line the formulas it begins with, or its sentence."""
    said, place = find(text)
    if place != "line":
        return said
    label, value = choice(_FILLER.sub("", said, count=1))
    if formulas := _FORMULAS.match(value):
        value = formulas[0].replace("$", "")
    elif rest := _REST.search(value):
        value = value[: rest.start()]
    value = value.rstrip(' .*_`"”')
    return f"({label}) {value}" if label else value


def choice(text: str) -> tuple[str, str]:
    """Return (A, 5) for "(A) 5"; ("", the text) if no choice's letter stands before it."""
    label = _LABEL.match(text)
    return (label[1] or label[2], text[label.end() :]) if label else ("", text)


def _boxes(text: str, last: int) -> list[str]:
    """Return the contents of the box that begins at `last`, preceded by those of the other boxes in its sentence."""
    found: list[tuple[int, int, str]] = []
    open_: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace["box"] or brace["open"]:
            open_.append(brace)
        elif brace["close"] and open_:
            begun = open_.pop()
            if begun["box"] and (not found or found[-1][0] < begun.start()):  # the inner one of two
                found.append((begun.start(), brace.end(), text[begun.end() : brace.start()]))
    if not found or found[-1][0] != last:
        return []
    first = len(found) - 1
    while first and not _NEXT_THOUGHT.search(text[found[first - 1][1] : found[first][0]]):
        first -= 1
    return [inside for _, _, inside in found[first:]]
