"""Expressions as people and models write them, read into sympy without ever being executed."""

from __future__ import annotations

import ast
import re
from typing import Any

FUNCTIONS = ("sqrt", "cbrt", "sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "Abs", "factorial", "binomial")
RENAMED = {"ln": "log", "abs": "Abs", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}
CONSTANTS = {"pi": "pi", "e": "E", "E": "E", "oo": "oo", "infinity": "oo"}
LONGEST = 2000  # characters
WORDS = "|".join(sorted((*FUNCTIONS, *RENAMED, *CONSTANTS), key=len, reverse=True))
UNITS = "km|cm|mm|m|kg|mg|g|ml|degrees?|cents?|dollars?|units?|hours?|minutes?|seconds?|inches|feet|miles|meters|metres"
LONGEST_NAME = 3  # letters that are read as a product, as in xy


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


def plain(text: str) -> str:
    """LaTeX and everyday writing as one line of Python's operators; what is not known is left, and fails to parse."""
    s = re.sub(r"\\[()\[\]]|\*\*(?=\S.*\S?\*\*$)|(?<=\S)\*\*$", "", text.strip().rstrip(".")).strip().strip("$").strip()
    s = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 ", s)
    s = re.sub(rf"(?<=[\d)}}])\s*(?:{UNITS})(?:\^?[23])?\s*$", "", s)
    s = re.sub(r"(?<![\w.])(\d+)\s*\\[dt]?frac\s*\{?(\d+?)\}?\s*\{?(\d+)\}?(?![\d}])", r"(\1+\2/\3)", s)  # mixed
    s = re.sub(r"\\binom\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"binomial(\1,\2)", s)
    s = re.sub(r"\\log\s*_\s*\{?(\w+)\}?\s*[({]?(\w+)[)}]?", r"(log(\2)/log(\1))", s)
    s = re.sub(r"\|([^|]+)\|", r"Abs(\1)", s)
    s = re.sub(r"(?<![\w!])(\d+|[A-Za-z])!(?![=!])", r"factorial(\1)", s)
    s = re.sub(r"\\(?:left|right|displaystyle|,|;|!|quad|qquad)", "", s)
    s = s.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "").replace("°", "")
    s = re.sub(r"\^\s*\{?\\circ\}?", "", s)
    for _ in range(8):  # fractions and roots inside each other
        before = s
        s = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", s)
        s = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"((\1)/(\2))", s)
        s = re.sub(r"\\sqrt\s*\[([^\[\]]*)\]\s*\{([^{}]*)\}", r"((\2)**(1/(\1)))", s)
        s = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"(sqrt(\1))", s)
        s = re.sub(r"\^\s*\{([^{}]*)\}", r"**(\1)", s)
        if s == before:
            break
    s = re.sub(r"\\(?:cdot|times)|[·×∗]", "*", s)
    s = s.replace("\\div", "/").replace("÷", "/").replace("−", "-").replace("–", "-").replace("^", "**")
    s = s.replace("π", "pi").replace("√", "sqrt").replace("∞", "oo").replace("\\infty", "oo").replace("{,}", ",")
    s = re.sub(r"\\([A-Za-z]+)", r" \1 ", s)
    if not re.search(r"[(\[{]", s):  # (100,200) is a pair
        s = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", s)
    s = re.sub(r"\b(sin|cos|tan|ln|log|exp)\s+([A-Za-z]|\d+)\b(?!\s*\()", r"\1(\2)", s)
    s = re.sub(r"sqrt\s*(\d+(?:\.\d+)?)", r"sqrt(\1)", s)
    s = re.sub(r"^\s*[A-Za-z]\s*=(?!=)", "", s)  # x = 3
    s = re.sub(r"(?<![\w.])(\d+)\s+(\d+)\s*/\s*(\d+)", r"(\1+\2/\3)", s)
    return multiplied(s.strip().rstrip(".").strip())


def multiplied(s: str) -> str:
    """2x, 3(x+1) and (x)(y) with their sign of multiplication."""
    s = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)\s*(?=[A-Za-z(])(?![eE][-+]?\d)", r"\1*", s)
    s = re.sub(r"\)\s*(?=[A-Za-z0-9(])", ")*", s)
    s = re.sub(r"(?<=[A-Za-z])\s+(?=[A-Za-z(])", "*", s)
    return re.sub(rf"(?<![A-Za-z])(?!(?:{WORDS})\s*\()([A-Za-z])\s*\(", r"\1*(", s)


def read(text: str) -> Any:
    """A sympy expression, or a tuple of them where commas part several.

    Raises:
        ValueError: it is no expression of numbers, one-letter names, operators and known functions.
    """
    import sympy

    if len(text) > LONGEST:
        raise ValueError(f"an expression of {len(text):,} characters; the most is {LONGEST:,}")
    source = plain(text)
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, MemoryError):
        raise ValueError(f"is no expression: {text[:80]!r}") from None

    def build(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return build(node.body)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return (
                sympy.Integer(node.value)
                if type(node.value) is int
                else sympy.Rational(ast.get_source_segment(source, node))
            )
        if isinstance(node, ast.Name):
            name = RENAMED.get(node.id, node.id)
            if name in CONSTANTS:
                return getattr(sympy, CONSTANTS[name])
            if len(name) <= LONGEST_NAME:
                return sympy.Mul(*(sympy.Symbol(letter, real=True) for letter in name))
            raise ValueError(f"is no expression: {node.id!r} is not known")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            return -build(node.operand) if isinstance(node.op, ast.USub) else build(node.operand)
        if isinstance(node, ast.BinOp):
            left, right = build(node.left), build(node.right)
            if isinstance(node.op, ast.Pow):
                if right.is_number and abs(right) > 10_000:
                    raise ValueError("a power beyond 10,000")
                return left**right
            for kind, made in ((ast.Add, lambda: left + right), (ast.Sub, lambda: left - right)):
                if isinstance(node.op, kind):
                    return made()
            if isinstance(node.op, ast.Mult):
                return left * right
            if isinstance(node.op, ast.Div):
                return left / right
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            name = RENAMED.get(node.func.id, node.func.id)
            if name in FUNCTIONS:
                return getattr(sympy, name)(*(build(a) for a in node.args))
        if isinstance(node, ast.Tuple):
            return tuple(build(e) for e in node.elts)
        raise ValueError(f"is no expression: {text[:80]!r}")

    return build(tree)


def as_words(text: str) -> list[str]:
    """An answer that is no expression, such as a word, an interval or a set, whose parts have no order."""
    bare = re.sub(r"\s+", "", plain(boxed(text))).lower()
    inside = re.fullmatch(r"\\?\{(.*?)\\?\}", bare)
    return sorted(inside[1].split(",")) if inside else [bare]


def same(answer: str, gold: str) -> tuple[bool, str]:
    """(whether two expressions are equal, why not)."""
    try:
        known = read(boxed(gold))
    except ValueError:
        equal = as_words(answer) == as_words(gold)
        return equal, "" if equal else "another text; the gold answer is no expression"
    try:
        said = read(boxed(answer))
    except ValueError:
        return False, "the answer is no expression"
    pair = [x if isinstance(x, tuple) else (x,) for x in (said, known)]
    if len(pair[0]) != len(pair[1]):
        return False, "another number of values"
    equal = all(equal_expressions(a, b) for a, b in zip(*pair, strict=True))
    return equal, "" if equal else "another value"


def equal_expressions(a: Any, b: Any) -> bool:
    """Whether two sympy expressions are the same wherever both are defined, as far as sympy can say."""
    import sympy

    if a == b:
        return True
    difference = a - b
    if difference.is_number:
        value = sympy.N(difference, 30)
        scale = max(1.0, abs(complex(sympy.N(b, 15)))) if b.is_finite else 1.0
        if not value.is_finite or abs(complex(value)) > 1e-12 * scale:
            return False
    return bool(difference.equals(0))
