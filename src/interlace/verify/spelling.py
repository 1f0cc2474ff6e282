"""Bring signs and commands to one spelling, and compare texts that differ only in typesetting."""

from __future__ import annotations

import re
import unicodedata

SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–‑﹣－", "-"),
        **dict.fromkeys("×·⋅∗", "*"),
        "÷": "/",
        "√": "\\sqrt ",
        "∞": "\\infty ",
        "∪": "\\cup ",
        "∩": "\\cap ",
        "∖": "\\setminus ",
        "±": "\\pm ",
        "∓": "\\mp ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "≠": "\\ne ",
        "∈": "\\in ",
        "∣": "\\mid ",
        "∅": "\\emptyset ",
        "ℝ": "\\mathbb{R}",
        "π": "\\pi ",
        "α": "\\alpha ",
        "β": "\\beta ",
        "γ": "\\gamma ",
        "θ": "\\theta ",
        "λ": "\\lambda ",
        "φ": "\\phi ",
        "ω": "\\omega ",
        "\u00a0": " ",
    }
)
COMMANDS = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "leqslant": "le",
    "geq": "ge",
    "geqslant": "ge",
    "neq": "ne",
    "varnothing": "emptyset",
    "smallsetminus": "setminus",
    "backslash": "setminus",
    "vert": "mid",
    "lvert": "mid",
    "rvert": "mid",
    "R": "reals",
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_DEGREES = re.compile(r"\^\s{0,4}(?:\{\s{0,4}\\circ\s{0,4}\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s{0,4}\{([^{}]*)\}")
_SPACES = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|big|Big)(?![A-Za-z])|\\[,;:! ]|[\s~]+")
_ONLY_WORDS = re.compile(r"(?:[^\W\d_]|[\s,;.()'’-])+")
_WORD = re.compile(r"[^\W\d_]{3,}|[^\W\d_][a-z]|\bNO\b")


def one_spelling(text: str) -> str:
    """Return a text with unicode's signs as LaTeX's commands, and one command for several that mean the same."""
    s = unicodedata.normalize("NFC", text).translate(SIGNS)
    s = re.sub(r"\\not\s{0,4}=", r"\\ne ", _DEGREES.sub("°", s))
    return _COMMAND.sub(lambda m: "\\" + COMMANDS.get(m[1], m[1]), s)


def normal(text: str) -> str:
    """Return one spelling for texts that differ only in typesetting: spaces, fonts, signs, a closing full stop.

    Words are in lower case; the letters of a formula and the two of a line such as AB keep their case.
    """
    s = text.strip().strip("*").strip()
    if len(s) > 1 and s.startswith("$") and s.endswith("$"):
        s = s.strip("$")
    s = re.sub(r"^\\[(\[]|\\[)\]]$", "", s).strip().rstrip(".").strip()
    s = one_spelling(_WRAPPED.sub(r"\1", s)).replace("\\%", "%").replace("\\$", "$")
    s = _SPACES.sub(" ", s).strip()
    s = re.sub(r"(?<![^\W_]) | (?![^\W_])", "", s)  # but 3 1/2 is not 31/2
    s = re.sub(r"(\\[A-Za-z]+) (?![A-Za-z])", r"\1", s)
    s = re.sub(r"([_^])\{(\w)\}", r"\1\2", s)
    s = re.sub(r"^\((\w)\)$", r"\1", s)
    return _WORD.sub(lambda m: m[0].casefold(), s) if _ONLY_WORDS.fullmatch(s) else s
