"""Answers that are expressions: compared as mathematics, shape by shape, with sympy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy

from interlace.distill.verify.reader import read
from interlace.distill.verify.shapes import (
    SHAPES,
    Group,
    Matrix,
    Members,
    Quantity,
    Region,
    Relation,
    Several,
    Words,
    number,
    region,
)
from interlace.distill.verify.spelling import boxed, normal


def same(answer: str, gold: str) -> tuple[bool, str]:
    """(whether two answers are equal, why not).

    Texts that only differ in how they are set are equal before anything is parsed. Numbers and formulas are equal where
    sympy finds their difference to be nothing; intervals, sets, tuples, matrices, equations and inequalities only among
    themselves, each by its own rule; words as text, never as products of letters. A unit counts where both have one.
    """
    one, other = boxed(answer), boxed(gold)
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
    """Whether two readings say the same."""
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
    """A shape as the other asks for it: the 3 of x = 3, of a set of 3 alone, or the point of x = 1, y = 2."""
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
    """Words with words as text; letters beside an expression as their product."""
    if isinstance(a, Words) and isinstance(b, Words):
        return a.text == b.text
    products = [x.product if isinstance(x, Words) else x for x in (a, b)]
    return None not in products and equal_shapes(*products)


def _equal_quantities(a: Any, b: Any) -> bool:
    units = {x.unit for x in (a, b) if isinstance(x, Quantity)}
    return len(units) == 1 and equal_shapes(*(x.value if isinstance(x, Quantity) else x for x in (a, b)))


def _equal_parts(a: Several | Members, b: Several | Members) -> bool:
    """Parts in any order; sets hold each once."""
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
    """One, or several that "and" or "or" joins."""
    if isinstance(said, Several):
        return said.joint != "," and all(map(_is_inequality, said.parts))
    return isinstance(said, Relation) and "=" not in said.signs


def _names(said: Any) -> tuple[str, ...]:
    """The names that a side is made of, () where it is anything else."""
    parts = said.parts if isinstance(said, Group) else (said,)
    names = tuple(getattr(p, "name", "") for p in parts)
    return names if all(names) else ()


def _value(said: Any) -> Any:
    """What an equation gives a name, or what numbers come to; the equation itself where it does neither."""
    first, last = said.sides[0], said.sides[-1]
    if _names(first):
        return last
    if _names(last):
        return first
    return last if getattr(first, "free_symbols", None) == set() and equal_shapes(first, last) else said


def _values(said: Several) -> Any:
    """x = 1, x = 2 as 1, 2 in any order; x = 1, y = 2 as the point (1, 2)."""
    names = [_names(p.sides[0]) if _is_equation(p) else () for p in said.parts]
    if not all(names):
        return said
    values = tuple(_value(p) for p in said.parts)
    return Several(values) if len(set(names)) == 1 else Group("(", ")", values)


def _equal_relations(a: Relation, b: Relation) -> bool:
    if _is_equation(a) and _is_equation(b):
        return _equal_equations(a, b)
    return _is_inequality(a) and _is_inequality(b) and _in_any_order(_links(a), _links(b), _equal_links)


def _equal_equations(a: Relation, b: Relation) -> bool:
    """One is a number times the other, or both give the same to the same names."""
    (a1, a2), (b1, b2) = ((x.sides[0], x.sides[-1]) for x in (a, b))
    if _names(a1) and _names(a1) == _names(b1):
        return equal_shapes(a2, b2)
    try:
        one, other = number(a1) - number(a2), number(b1) - number(b2)
    except ValueError:
        return equal_shapes(a1, b1) and equal_shapes(a2, b2)
    return _ratio(one, other) is not None


def _links(said: Relation) -> list[tuple[str, Any]]:
    """Each sign of a chain with what is more than nothing by it."""
    found = []
    for sign, low, high in zip(said.signs, said.sides, said.sides[1:], strict=False):
        low, high = (number(x.value if isinstance(x, Quantity) else x) for x in (low, high))
        found.append((sign.replace(">", "<"), low - high if sign.startswith(">") else high - low))
    return found


def _equal_links(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    ratio = _ratio(one[1], other[1]) if one[0] == other[0] else None
    return ratio is not None and (one[0] == "!=" or bool(ratio.is_positive))


def _ratio(one: Any, other: Any) -> Any:
    """The number that one expression is times the other; None where there is none."""
    if other == 0 or one == 0:
        return sympy.Integer(1) if one == other else None
    ratio = sympy.simplify(one / other)
    return ratio if ratio.is_number and ratio.is_finite and ratio != 0 else None


def _region(said: Any) -> Any:
    """An interval, a set, or inequalities of one unknown, as sympy's set."""
    if not _is_inequality(said):
        return region(said)
    if isinstance(said, Several):
        return (sympy.Union if said.joint == "or" else sympy.Intersection)(*map(_region, said.parts))
    made = {"<": sympy.Gt, "<=": sympy.Ge, "!=": sympy.Ne}
    return sympy.Intersection(*(made[sign](difference, 0).as_set() for sign, difference in _links(said)))


def _equal_regions(a: Any, b: Any) -> bool:
    """The same set, or unions of as many parts whose ends are equal."""
    one, other = (list(x.args) if isinstance(x, sympy.Union) else [x] for x in (a, b))

    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, sympy.Interval) and isinstance(y, sympy.Interval):
            return x.args[2:] == y.args[2:] and all(map(equal_expressions, x.args[:2], y.args[:2]))
        return bool(x == y)

    return a == b or _in_any_order(one, other, equal)


def equal_expressions(a: Any, b: Any) -> bool:
    """Whether two sympy expressions are the same wherever both are defined, as far as sympy can say."""
    if a == b:
        return True
    difference = a - b
    if difference.is_number:
        value = sympy.N(difference, 30)
        scale = max(1.0, abs(complex(sympy.N(b, 15)))) if b.is_finite else 1.0
        if not value.is_finite or abs(complex(value)) > 1e-12 * scale:
            return False
    return bool(difference.equals(0))
