"""Compare answers that are expressions as mathematics, shape by shape, with sympy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
from sympy.core.evalf import PrecisionExhausted

from interlace.verify.final import choice, final_answer
from interlace.verify.reader import read
from interlace.verify.shapes import (
    SHAPES,
    Group,
    Matrix,
    Members,
    Quantity,
    Region,
    Relation,
    Several,
    Words,
    links,
    number,
    region,
)
from interlace.verify.spelling import normal

LONGEST_CHAIN = 6  # sides of an equation that are also compared in another order


def same(answer: str, gold: str) -> tuple[bool, str]:
    """Return (whether two answers are equal, why not).

    Texts that differ only in typesetting are equal before anything is parsed. Numbers and formulas are equal if sympy
    finds that their difference is 0. Intervals, sets, tuples, matrices, equations and inequalities are compared only
    with their own kind, by a rule for each. Words are compared as text, never as products of letters. A unit counts if
    both have one.
    """
    one, other = final_answer(answer), final_answer(gold)
    (letter, value), (known_letter, known_value) = choice(one), choice(other)
    letters = (letter or one.strip("(). "), known_letter or other.strip("(). "))
    if (letter and known_letter) or ((letter or known_letter) and letters[0] == letters[1]):
        return (True, "") if letters[0] == letters[1] else (False, "another choice")
    return _same(value, known_value)


def _same(one: str, other: str) -> tuple[bool, str]:
    """Compare two answers that were found in their texts; see `same`."""
    if (text := normal(one)) and text == normal(other):
        return True, ""
    said, known = read(one), read(other)
    if isinstance(known, Words) and known.product is None:
        equal = isinstance(said, Words) and said.text == known.text
        return equal, "" if equal else "another text; the gold answer is no expression"
    if isinstance(said, Words) and said.product is None:
        return False, f"the answer is no expression: {said.why}"[:200]
    try:
        return (True, "") if equal_shapes(said, known) else (False, "another value")
    except MemoryError:
        raise
    except Exception as error:  # sympy raises errors of every kind, and no answer may end a run
        return False, f"cannot be compared: {type(error).__name__}"


def equal_shapes(a: Any, b: Any) -> bool:
    """Return whether two readings mean the same."""
    if isinstance(a, Words) or isinstance(b, Words):
        return _equal_words(a, b)
    a, b = _beside(a, b), _beside(b, a)
    if isinstance(a, Quantity) or isinstance(b, Quantity):
        return _equal_quantities(a, b)
    if isinstance(a, Relation) and isinstance(b, Relation):
        return _equal_relations(a, b)
    if isinstance(a, Several | Members) and isinstance(b, Several | Members):
        return _equal_parts(a, b)
    if isinstance(a, Matrix) and isinstance(b, Matrix):
        return len(a.rows) == len(b.rows) and all(map(_in_order, a.rows, b.rows))
    if isinstance(a, Group) and isinstance(b, Group):
        return (a.open, a.close) == (b.open, b.close) and _in_order(a.parts, b.parts)
    sets = [isinstance(x, Region) or _is_inequality(x) for x in (a, b)]
    if any(sets) and all(known or isinstance(x, Group | Members) for known, x in zip(sets, (a, b), strict=True)):
        return _equal_regions(_region(a), _region(b))
    return not isinstance(a, SHAPES) and not isinstance(b, SHAPES) and equal_expressions(a, b)


def _beside(said: Any, other: Any) -> Any:
    """Return a shape in the form of the other: the 3 of x = 3, of a set of 3 alone, or the point of x = 1, y = 2."""
    if isinstance(said, Relation) and _is_equation(said) and not _is_equation(other):
        return _value(said)
    if isinstance(said, Several) and not isinstance(other, Several):
        return _values(said)
    if isinstance(said, Several) and isinstance(other, Several):
        return said if any(map(_is_equation, other.parts)) else _values(said)
    if isinstance(said, Members) and len(said.parts) == 1 and not isinstance(other, Members | Region):
        return said.parts[0]
    if isinstance(said, Group) and isinstance(other, Several) and isinstance(_values(other), Several):
        return said
    return said


def _equal_words(a: Any, b: Any) -> bool:
    """Return whether words are equal: as text to words, and as a product of letters to an expression."""
    if isinstance(a, Words) and isinstance(b, Words):
        return a.text == b.text
    products = [x.product if isinstance(x, Words) else x for x in (a, b)]
    return None not in products and equal_shapes(*products)


def _equal_quantities(a: Any, b: Any) -> bool:
    """Return whether values are equal, in the same unit if both have one; 5m is 5 meters, 60 degrees a third of pi."""
    units = [x.unit if isinstance(x, Quantity) else "" for x in (a, b)]
    values = [x.value if isinstance(x, Quantity) else x for x in (a, b)]
    if "" in units and all(isinstance(v, sympy.Expr) for v in values):
        (unit,) = set(units) - {""}
        bare = values[units.index("")]
        if unit == "°" and bare.has(sympy.pi):
            units[units.index("")] = "rad"
        elif names := getattr(product := read(unit), "free_symbols", None):
            values[units.index(unit)] *= product if names <= bare.free_symbols else 1
    if set(units) == {"°", "rad"}:
        values[units.index("°")] *= sympy.pi / 180
        units = []
    return len(set(units) - {""}) < 2 and equal_shapes(*values)


def _equal_parts(a: Several | Members, b: Several | Members) -> bool:
    """Return whether parts are equal in any order; sets hold each part once."""
    joints = {x.joint for x in (a, b) if isinstance(x, Several)} - {","}
    if len(joints) > 1 and any(map(_is_inequality, a.parts)):  # x < 1 or x > 2 is not x < 1 and x > 2
        return False
    one, other = (_once(x.parts) if isinstance(x, Members) else list(x.parts) for x in (a, b))
    return _in_any_order(one, other, equal_shapes)


def _once(parts: Sequence[Any]) -> list[Any]:
    kept: list[Any] = []
    for part in parts:
        if not any(equal_shapes(part, k) for k in kept):
            kept.append(part)
    return kept


def _in_order(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(equal_shapes, one, other))


def _in_any_order(one: Sequence[Any], other: Sequence[Any], equal: Callable[[Any, Any], bool]) -> bool:
    rest = list(other)
    for part in one:
        place = next((i for i, x in enumerate(rest) if equal(part, x)), None)
        if place is None:
            return False
        del rest[place]
    return not rest


# --- equations and inequalities


def _is_equation(said: Any) -> bool:
    return isinstance(said, Relation) and set(said.signs) == {"="}


def _is_inequality(said: Any) -> bool:
    """Return whether this is an inequality, or several joined by "and" or "or"."""
    if isinstance(said, Several):
        return said.joint != "," and all(map(_is_inequality, said.parts))
    return isinstance(said, Relation) and "=" not in said.signs


def _names(said: Any) -> tuple[str, ...]:
    """Return the names that a side is made of, () if it is anything else."""
    parts = said.parts if isinstance(said, Group) else (said,)
    names = tuple(getattr(p, "name", "") for p in parts)
    return names if all(names) else ()


def _value(said: Any) -> Any:
    """Return what an equation gives a name, or the result of numbers; else the equation itself."""
    first, last = said.sides[0], said.sides[-1]
    if _names(first) or _names(last):
        return next((x for x in reversed(said.sides) if not _names(x)), last)
    return last if getattr(first, "free_symbols", None) == set() and equal_shapes(first, last) else said


def _values(said: Several) -> Any:
    """Return x = 1, x = 2 as 1, 2 in any order, and x = 1, y = 2 as the point (1, 2)."""
    names = [_names(p.sides[0]) if _is_equation(p) else () for p in said.parts]
    if not all(names):
        return said
    values = tuple(_value(p) for p in said.parts)
    return Several(values) if len(set(names)) == 1 else Group("(", ")", values)


def _equal_relations(a: Relation, b: Relation) -> bool:
    if _is_equation(a) and _is_equation(b):
        return _equal_equations(a, b)
    if not _is_inequality(a) or not _is_inequality(b):
        return False
    if _in_any_order(links(a), links(b), _equal_links):
        return True
    unknown = {s for x in (a, b) for _, difference in links(x) for s in difference.free_symbols}
    return len(unknown) == 1 and _equal_regions(region(a), region(b))


def _equal_equations(a: Relation, b: Relation) -> bool:
    """Return whether one equation is a number times the other, or both give the same to the same names."""
    if max(len(a.sides), len(b.sides)) > LONGEST_CHAIN:
        return _in_order(a.sides, b.sides)
    if len(a.sides) > 2 or len(b.sides) > 2:
        return _equal_chains(_once(a.sides), _once(b.sides))
    (a1, a2), (b1, b2) = a.sides, b.sides
    if _names(a1) and _names(a1) == _names(b1):
        return equal_shapes(a2, b2)
    try:
        one, other = number(a1) - number(a2), number(b1) - number(b2)
    except ValueError:
        return equal_shapes(a1, b1) and equal_shapes(a2, b2)
    return _ratio(one, other) is not None


def _equal_chains(one: list[Any], other: list[Any]) -> bool:
    """Return whether the sides are the same in any order, or all of them times one number; A = 2x = 6 equals A = 6."""
    short, long = sorted((one, other), key=len)
    if len(short) == 2 < len(long):
        steps, last = long[1:-1], getattr(long[-1], "value", long[-1])
        given = _names(short[0]) and _names(short[0]) == _names(long[0]) and not any(map(_names, steps))
        return bool(given) and getattr(last, "free_symbols", None) == set() and equal_shapes(short[1], long[-1])
    if len(short) == 2:
        return _equal_equations(*(Relation(("=",), tuple(x)) for x in (one, other)))
    if not all(isinstance(x, sympy.Expr) for x in one + other):
        return _in_any_order(one, other, equal_shapes)
    first = next((x for x in one if x != 0), sympy.Integer(0))
    ratios = [r for r in (_ratio(first, x) for x in other) if r is not None]
    return any(_in_any_order(one, [x * r for x in other], equal_shapes) for r in ratios)


def _equal_links(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    ratio = _ratio(one[1], other[1]) if one[0] == other[0] else None
    return ratio is not None and (one[0] == "!=" or bool(ratio.is_positive))


def _ratio(one: Any, other: Any) -> Any:
    """Return the number that one expression is times the other; None if there is none."""
    if other == 0 or one == 0:
        return sympy.Integer(1) if one == other else None
    ratio = sympy.simplify(one / other)
    return ratio if ratio.is_number and ratio.is_finite and ratio != 0 else None


def _region(said: Any) -> Any:
    """Return an interval, a set, or inequalities of one unknown as sympy's set."""
    if isinstance(said, Several):
        return (sympy.Union if said.joint == "or" else sympy.Intersection)(*map(_region, said.parts))
    return region(said)


def _equal_regions(a: Any, b: Any) -> bool:
    """Return whether two sets are equal, or unions of as many parts whose ends are equal."""
    one, other = (list(x.args) if isinstance(x, sympy.Union) else [x] for x in (a, b))

    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, sympy.Interval) and isinstance(y, sympy.Interval):
            return x.args[2:] == y.args[2:] and all(map(equal_expressions, x.args[:2], y.args[:2]))
        return bool(x == y)

    return a == b or _in_any_order(one, other, equal)


def equal_expressions(a: Any, b: Any) -> bool:
    """Return whether two sympy expressions are the same wherever both are defined, as far as sympy can tell.

    If it cannot tell for constants, they count as the same when 200 digits show no difference.
    """
    if a == b:
        return True
    difference = a - b
    if not difference.is_number:
        return bool(difference.equals(0))
    try:
        return bool(difference.evalf(15, maxn=200, strict=True) == 0)
    except PrecisionExhausted:
        return True
