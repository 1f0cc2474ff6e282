"""The shapes of answers: numbers and formulas as sympy expressions within bounds, and what holds several of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy

MOST_BITS = 40_000  # of a number
MOST_POWER = 10_000
MOST_FACTORIAL = 1000
DEGREE = sympy.Symbol("°", real=True)
TRIGONOMETRY = ("sin", "cos", "tan", "cot", "sec", "csc")


@dataclass(frozen=True)
class Words:
    """A text that is no mathematics; letters alone may still be a product, beside an expression."""

    text: str
    why: str = ""
    product: Any = None


@dataclass(frozen=True)
class Quantity:
    """A value with a unit."""

    value: Any
    unit: str


@dataclass(frozen=True)
class Several:
    """Values separated by commas or "and", in any order."""

    parts: tuple[Any, ...]
    joint: str = ","  # or "and", "or"


@dataclass(frozen=True)
class Members:
    """A set whose members are written out."""

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Group:
    """A tuple, a point or an interval: its brackets, and its parts in order."""

    open: str
    close: str
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Region:
    """A union, an intersection or a difference of intervals and sets, as sympy's."""

    region: Any


@dataclass(frozen=True)
class Matrix:
    """A matrix: rows of values."""

    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Relation:
    """An equation or inequality: its sides, and the signs between them."""

    signs: tuple[str, ...]
    sides: tuple[Any, ...]


SHAPES = (Group, Matrix, Members, Quantity, Region, Relation, Several)


# --- values, held within bounds before they are made


def number(said: Any) -> Any:
    """Return a sympy expression, or raise ValueError for a shape, or for an expression that has no value."""
    if not isinstance(said, sympy.Expr) or said.has(sympy.nan, sympy.zoo):
        raise ValueError("it stands where a number is due")
    return said


def periodic(text: str) -> Any:
    """Return a periodic number as a fraction: 0.1\\overline{6} as 1/6."""
    fixed, _, period = text.partition("\\")
    period = period[period.index("{") + 1 : -1]
    whole, _, places = fixed.partition(".")
    below = (10 ** len(period) - 1) * 10 ** len(places)
    above = int((whole + places or "0") + period) - int(whole + places or "0")
    return sympy.Rational(above, below)


def divided(above: Any, below: Any) -> Any:
    """Return a quotient; raise ValueError for a division by 0."""
    above, below = number(above), number(below)
    if below == 0:
        raise ValueError("it is divided by zero")
    return above / below


def power(base: Any, exponent: Any) -> Any:
    """Return a power, if it can be written down."""
    if exponent.is_number and exponent.is_finite:
        size = abs(sympy.N(exponent, 15))
        bits = max(int(base.p).bit_length(), int(base.q).bit_length()) if base.is_Rational else 1
        if size > MOST_POWER or size * bits > MOST_BITS:
            raise ValueError(f"a power beyond {MOST_POWER:,}, or of more than {MOST_BITS:,} bits")
    return number(base**exponent)


def root(said: Any, degree: Any) -> Any:
    """Return a root, the real one if there is one: -2 for the third root of -8."""
    if degree.is_Integer and degree.is_odd and said.is_number and said.is_negative:
        return -power(-said, 1 / degree)
    return power(said, 1 / degree)


def factorial(said: Any) -> Any:
    """Return a factorial, if it can be written down."""
    if said.is_number and not abs(sympy.N(said, 15)) <= MOST_FACTORIAL:
        raise ValueError(f"a factorial beyond {MOST_FACTORIAL:,}")
    return number(sympy.factorial(said))


def binomial(above: Any, below: Any) -> Any:
    """Return a binomial coefficient, if it can be written down."""
    if any(n.is_number and not abs(sympy.N(n, 15)) <= MOST_POWER for n in (number(above), number(below))):
        raise ValueError(f"a binomial coefficient beyond {MOST_POWER:,}")
    return number(sympy.binomial(above, below))


def applied(name: str, given: list[Any], base: Any) -> Any:
    """Return a function applied to its arguments."""
    if name == "factorial":
        return factorial(*given)
    if name == "binomial":
        return binomial(*given)
    if name in TRIGONOMETRY:
        given = [g.subs(DEGREE, sympy.pi / 180) for g in given]
    if name in ("log", "lg"):
        base = sympy.Integer(10) if name == "lg" else base
        return number(sympy.log(*given) / sympy.log(base) if base is not None else sympy.log(*given))
    if base is not None:
        raise ValueError(f"{name} has no base")
    if name == "cbrt":
        (radicand,) = given
        return root(radicand, sympy.Integer(3))
    return number(getattr(sympy, name)(*given))


def region(said: Any) -> Any:
    """Return an interval or a set as sympy's."""
    if isinstance(said, Region):
        return said.region
    if isinstance(said, Members):
        return sympy.FiniteSet(*(number(p) for p in said.parts))
    if isinstance(said, Group) and len(said.parts) == 2:
        low, high = (number(p) for p in said.parts)
        if (high - low).is_negative:
            raise ValueError("an interval ends before it begins")
        return sympy.Interval(low, high, said.open == "(", said.close == ")")
    if isinstance(said, Relation):  # of one unknown
        made = {"<": sympy.Gt, "<=": sympy.Ge, "!=": sympy.Ne, "=": sympy.Eq}
        return sympy.Intersection(*(made[sign](difference, 0).as_set() for sign, difference in links(said)))
    raise ValueError("it stands where an interval or a set is due")


def links(said: Relation) -> list[tuple[str, Any]]:
    """Return (sign, difference) for each sign of a chain; > becomes <, and < holds if the difference is positive."""
    found = []
    for sign, low, high in zip(said.signs, said.sides, said.sides[1:], strict=False):
        low, high = (number(x.value if isinstance(x, Quantity) else x) for x in (low, high))
        found.append((sign.replace(">", "<"), low - high if sign.startswith(">") else high - low))
    return found
