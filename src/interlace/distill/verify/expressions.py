"""Expressions as people and models write them, read into sympy without ever being executed."""

from __future__ import annotations

import ast
import re
from typing import Any

FUNCTIONS = ("sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "exp", "log", "Abs", "factorial", "binomial", "root")
RENAMED = {"ln": "log", "abs": "Abs", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "cbrt": "root3"}
CONSTANTS = {"pi": "pi", "e": "E", "E": "E", "oo": "oo", "infinity": "oo"}
LONGEST = 2000  # characters
WORDS = "|".join(sorted((*FUNCTIONS, *RENAMED, *CONSTANTS, "root3"), key=len, reverse=True))


def boxed(text: str) -> str:
    """What stands in the last \\boxed{} of a text, or after its last "####", or after "answer is", or all of it."""
    place = text.rfind("\\boxed")
    if place >= 0:
        start = text.find("{", place)
        depth = 0
        for i in range(start, len(text)) if start >= 0 else ():
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if not depth:
                return text[start + 1 : i]
    for mark in (r"####", r"answer(?: is|:)"):
        found = list(re.finditer(mark, text, re.IGNORECASE))
        if found:
            after = text[found[-1].end() :].strip().splitlines()
            return after[0].rstrip(". ") if after else ""
    return text.strip()


def plain(text: str) -> str:
    """LaTeX and everyday writing as one line of Python's operators; what is not known is left, and fails to parse."""
    s = text.strip().strip("$").strip()
    s = re.sub(r"\\(?:text|mathrm|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 ", s)
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
    s = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", s)
    s = re.sub(r"sqrt\s*(\d+(?:\.\d+)?)", r"sqrt(\1)", s)
    s = re.sub(r"^\s*[A-Za-z]\s*=(?!=)", "", s)  # x = 3
    s = re.sub(r"(?<![\w.])(\d+)\s+(\d+)\s*/\s*(\d+)", r"(\1+\2/\3)", s)
    return multiplied(s.strip().rstrip(".").strip())


def multiplied(s: str) -> str:
    """2x, 3(x+1) and (x)(y) with their sign of multiplication."""
    s = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)\s*(?=[A-Za-z(])(?![eE][-+]?\d)", r"\1*", s)
    s = re.sub(r"\)\s*(?=[A-Za-z0-9(])", ")*", s)
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
            if len(name) == 1:
                return sympy.Symbol(name, real=True)
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


def same(answer: str, gold: str) -> tuple[bool, str]:
    """(whether two expressions are equal, why not)."""
    try:
        known = read(boxed(gold))
    except ValueError:
        equal = plain(boxed(answer)) == plain(boxed(gold))
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
