"""Cut mathematics as people and models write it (LaTeX, plain text, Python) into tokens."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from interlace.verify import units
from interlace.verify.spelling import one_spelling

FUNCTIONS = {
    **{n: n for n in ("sqrt", "cbrt", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "log")},
    **{n: n for n in ("asin", "acos", "atan", "factorial", "binomial", "floor")},
    "ln": "log",
    "lg": "lg",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "abs": "Abs",
    "Abs": "Abs",
    "ceil": "ceiling",
    "ceiling": "ceiling",
}
CONSTANTS = ("pi", "oo", "infty", "infinity", "inf")
GREEK = re.compile(
    "alpha|beta|[Gg]amma|[Dd]elta|(?:var)?epsilon|zeta|eta|(?:var)?theta|Theta|iota|kappa|[Ll]ambda|mu|nu|[Xx]i|rho|"
    "[Ss]igma|tau|[Uu]psilon|(?:var)?phi|Phi|chi|[Pp]si|[Oo]mega|Pi|ell"
)
RELATIONS = {
    "=": "=",
    "==": "=",
    "<": "<",
    ">": ">",
    "<=": "<=",
    ">=": ">=",
    "!=": "!=",
    "in": "in",
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "ge": ">=",
    "ne": "!=",
}
OPERATORS = {"cdot": "*", "times": "*", "ast": "*", "div": "/", "colon": ":"}
BRACKETS = {"mid": "|", "lbrace": "\\{", "rbrace": "\\}"}
ALONE = r"(?![A-Za-z])(?:\^\{?\d\}?)?"
_ONE_UNIT = rf"(?:{units.NAMES}|{units.PLAIN_LETTERS}){ALONE}"
_UNIT = rf"{_ONE_UNIT}(?:\s*(?:/|per\b|\s)\s*{_ONE_UNIT})*"
_ENDS = r"(?=\s*(?:$|[,;)\]}=])|\s*\\\\|\s+(?:and|or)\b)"  # what may stand behind a unit
_TOKEN = re.compile(
    rf"(?P<unit>(?<=[\d)}}°])(?:\s+|(?=(?:{units.ATTACHED}){ALONE})){_UNIT}{_ENDS})"
    r"|(?P<space>\s+)"
    r"|(?P<period>\d*\.\d*\\(?:overline|bar|dot)\s*\{\d+\})"
    r"|(?P<grouped>\d{1,3}(?:,\d{3})+(?![\d])(?!,\d)(?:\.\d+)?|\d{1,3}(?: \d{3}){2,}(?!\d))"
    r"|(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?)"
    r"|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname)\s*\{(?P<word>(?:[^{}]|\{[^{}]*\})*)\}(?:\^\{?(?P<power>-?\d)\}?)?"
    r"|\\(?:begin|end)\s*\{(?P<environment>[a-z]+\*?)\}(?:\{[lcr|]*\})?"
    r"|\\mathbb\s*\{?(?P<field>[A-Z])\}?"
    r"|\\(?P<command>[A-Za-z]+)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<sign>\*\*|==|<=|>=|!=|\\\\|\\[{}|]|[-+*/^_=<>!|,:;&(){}\[\]°])"
)
_BEHIND_A_UNIT = re.compile(rf"{_ENDS}|(?=\s*(?:/|\\cdot|\*)\s*\\(?:text|mathrm))")
_DROPPED = re.compile(
    r"\\\\|\\(?:left|right|[bB]igg?[lr]?|middle|displaystyle|limits)(?![A-Za-z])|\\[,;:!()\[\]]|\\?\$|\\(?=%)"
)
_SPACE = re.compile(r"\\\\|\\(?:quad|qquad)(?![A-Za-z])|\\\s|~")
_OPEN_AT_LEFT = re.compile(r"\]([^\[\](),]+),([^\[\](),]+)([\[\]])")  # ]0,1[ as (0,1)
_OPEN_AT_RIGHT = re.compile(r"\[([^\[\](),]+),([^\[\](),]+)\[")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")


class Token(NamedTuple):
    """A piece of a text: what it is, what it says, and where it stands."""

    kind: str
    text: str
    start: int
    end: int
    after_space: bool


def clean(text: str) -> str:
    """Return a text with one spelling for each sign, and without commands that only set the type."""
    s = text.strip().rstrip(".").strip()
    if len(s) > 4 and s.startswith("**") and s.endswith("**"):
        s = s[2:-2]
    s = re.sub(r"(?<=[A-Za-z])\\[,;:](?=[A-Za-z])", " ", s)  # \sin\,x is not \sinx
    s = _DROPPED.sub(lambda m: m[0] if m[0] == "\\\\" else "", s)
    s = _SPACE.sub(lambda m: m[0] if m[0] == "\\\\" else " ", s)
    s = re.sub(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*\b(?:and|or)\b[^{}]*)\}", r" \1 ", s)
    s = _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0]).replace('−', '-')}}}", s)
    s = one_spelling("".join(map(_vulgar, s))).replace("{,}", ",").replace("%", "\\text{%}")
    s = re.sub(r"°\s*(?:[CF]|\\(?:text|mathrm)\s*\{\s*[CF]\s*\})(?![A-Za-z])", "°", s)
    s = _OPEN_AT_LEFT.sub(lambda m: f"({m[1]},{m[2]}{')' if m[3] == '[' else ']'}", s)
    return _OPEN_AT_RIGHT.sub(r"[\1,\2)", s).strip().rstrip(".").strip()


def _vulgar(letter: str) -> str:
    whole = unicodedata.normalize("NFKC", letter) if not letter.isascii() else letter
    above, bar, below = whole.partition("\u2044")
    return f"\\frac{{{above}}}{{{below}}}" if bar else letter


def tokens(text: str) -> list[Token]:
    """Return the tokens of a cleaned text.

    Raises:
        ValueError: it holds a sign that is not known here.
    """
    found: list[Token] = []
    open_: list[str] = []  # brackets in which a comma parts; braces that only hold together are none of them
    place, spaced = 0, False
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"{text[place : place + 20]!r} is not known")
        kind, said = match.lastgroup or "", match[0]
        if kind == "grouped" and any(b != "{}" for b in open_):  # (100,200) is a pair
            match = re.compile(r"\d+(?:\.\d+)?").match(text, place)
            assert match is not None
            kind, said = "number", match[0]
        if kind == "power":
            kind = "word"
        if kind == "sign":
            _note_bracket(said, found, open_)
        if kind != "space":
            if kind == "word" and _is_unit(match, found):
                found.append(Token("unit", match["word"].strip(), *match.span(), spaced))
            else:
                found.extend(t._replace(after_space=spaced) for t in _made(kind, match, said))
        place, spaced = match.end(), kind == "space"
    return found


def _note_bracket(said: str, found: list[Token], open_: list[str]) -> None:
    """Record which brackets are open after a sign."""
    if said in ("(", "[", "\\{"):
        open_.append(said)
    elif said == "{":
        grouping = bool(found) and (found[-1].kind == "command" or found[-1].text in ("^", "_", "}"))
        open_.append("{}" if grouping or not found else "{")
    elif said in (")", "]", "}", "\\}") and open_:
        open_.pop()


def _is_unit(match: re.Match[str], found: list[Token]) -> bool:
    """Return whether a letter in \\text{} is a unit: 5\\text{ m}, \\mathrm{m}/\\mathrm{s}, not 2\\text{x}."""
    if (
        match["power"]
        or match["word"].strip() not in units.LETTERS
        or not found
        or not _BEHIND_A_UNIT.match(match.string, match.end())
    ):
        return False
    before = found[-1]
    if before.text in ("/", "*") and len(found) > 1:
        before = found[-2]
    return before.kind in ("number", "period", "constant", "unit", "word") or before.text in (")", "}", "°")


def _made(kind: str, match: re.Match[str], said: str) -> list[Token]:
    """Return the tokens of one match."""
    start, end = match.span()

    def one(kind: str, text: str) -> list[Token]:
        return [Token(kind, text, start, end, False)]

    if kind == "grouped":
        return one("number", re.sub(r"[, ]", "", said))
    if kind == "word":
        return _of_words(match, one)
    if kind == "environment":
        return one("begin" if said.startswith("\\begin") else "end", match["environment"])
    if kind == "field":
        return one("command", "reals" if match["field"] == "R" else f"mathbb{match['field']}")
    if kind == "command":
        name = match["command"]
        if name in BRACKETS:
            return one("sign", BRACKETS[name])
        return one("sign", OPERATORS[name]) if name in OPERATORS else one(*_named(name, "command"))
    if kind == "letters":
        if said in ("and", "or"):
            return one("separator", said)
        return one(*_named(said, "letters"))
    if kind == "sign":
        if said in RELATIONS:
            return one("relation", RELATIONS[said])
        return one("separator", said) if said in (",", ";") else one("sign", "^" if said == "**" else said)
    return one(kind, said.strip())


def _named(name: str, otherwise: str) -> tuple[str, str]:
    """Return (kind, name) of a name, which may have had a backslash before it."""
    if name in FUNCTIONS:
        return "function", FUNCTIONS[name]
    if name in CONSTANTS:
        return "constant", "pi" if name == "pi" else "oo"
    if otherwise == "command" and name in RELATIONS:
        return "relation", RELATIONS[name]
    one_letter = GREEK.fullmatch(name) or (otherwise == "letters" and len(name) == 1)
    return ("letter", name) if one_letter else (otherwise, name)


def _of_words(match: re.Match[str], one) -> list[Token]:  # type: ignore[no-untyped-def]
    """Return the tokens of \\text{...}: a name, a number or "and" for itself, else words, such as a unit."""
    said = match["word"].strip()
    if said in ("and", "or", ","):
        return one("separator", said)
    if not match["power"] and re.fullmatch(r"[A-Za-z]|\d+", said):
        return one("letter" if said.isalpha() else "number", said)
    if said in FUNCTIONS:
        return one("function", FUNCTIONS[said])
    return one("word", said + (f"^{match['power']}" if match["power"] else "")) if said else []
