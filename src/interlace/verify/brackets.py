"""A cursor over tokens, and a reader of what stands between brackets: tuples, intervals, sets, matrices."""

from __future__ import annotations

from typing import Any

import sympy

from interlace.verify.notation import Token
from interlace.verify.shapes import Group, Matrix, Members, Region, Relation, number, region

MATRICES = ("matrix", "pmatrix", "bmatrix", "array", "smallmatrix")


class Cursor:
    """A place among the tokens of one item."""

    def __init__(self, found: list[Token], plus: int = 1):
        """plus: 1 or -1, the sign that a plus-or-minus sign stands for."""
        self._found, self._place, self._plus = found, 0, plus
        self._bars = 0  # that are open, of absolute values
        self._squares = 0  # square brackets that are open
        self._depth = 0  # brackets of any kind

    def _next(self) -> Token | None:
        return self._found[self._place] if self._place < len(self._found) else None

    def _is(self, *texts: str, kinds: tuple[str, ...] = ("sign",)) -> bool:
        token = self._next()
        return token is not None and token.kind in kinds and (not texts or token.text in texts)

    def _command(self, *names: str) -> bool:
        return self._is(*names, kinds=("command",))

    def _take(self) -> Token:
        token = self._next()
        if token is None:
            raise ValueError("it ends too early")
        self._place += 1
        return token

    def _expect(self, *texts: str) -> Token:
        token = self._take()
        if token.text not in texts:
            raise ValueError(f"{texts[0]!r} is missing before {token.text!r}")
        return token

    def _until_closed(self) -> str:
        """Return the text inside braces, as it is written."""
        self._expect("{")
        said = ""
        while not self._is("}"):
            said += self._take().text
        self._take()
        return said


class Brackets(Cursor):
    """Reads what stands between brackets; a subclass reads relations, sides and sums."""

    def _relation(self) -> Any:
        raise NotImplementedError

    def _side(self) -> Any:
        raise NotImplementedError

    def _sum(self) -> Any:
        raise NotImplementedError

    def _braces(self) -> Any:
        self._expect("{")
        return self._bracket("{")

    def _bracket(self, opened: str) -> Any:
        """Return what a bracket holds: one value, or the parts of a tuple, an interval or a set."""
        if opened == "|":
            self._bars += 1
            said = sympy.Abs(number(self._sum()))
            self._expect("|")
            self._bars -= 1
            return said
        bars, self._bars = self._bars, 0
        self._squares += opened == "["
        self._depth += 1
        found = self._by_conditions() if opened in ("{", "\\{") else None
        parts = self._parts() if found is None else [found]
        closed = self._expect(*{"{": ("}",), "\\{": ("\\}",)}.get(opened, (")", "]"))).text
        self._bars = bars
        self._squares -= opened == "["
        self._depth -= 1
        if opened in ("{", "\\{"):
            plain = len(parts) == 1 and (opened == "{" or isinstance(parts[0], Region | Relation))
            return parts[0] if plain else Members(tuple(parts))
        if len(parts) > 1:
            return Group(opened, closed, tuple(parts))
        if opened + closed not in ("()", "[]"):
            raise ValueError(f"{opened} is closed by {closed}")
        return parts[0]

    def _by_conditions(self) -> Any:
        """Return a set such as {x | x > 2} or {x in (0, 5) : x > 2}; None if no such set begins here."""
        begun, within = self._place, sympy.Reals
        if not self._is(kinds=("letter",)):
            return None
        self._take()
        if self._is("in", kinds=("relation",)):
            self._take()
            self._bars += 1  # so that the next one opens no absolute value
            domain = self._side()
            self._bars -= 1
            within = sympy.Reals if getattr(domain, "name", "") == "R" else region(domain)
        if not self._is("|", ":"):
            self._place = begun
            return None
        self._take()
        met, joints = [self._relation()], set()
        while self._is(kinds=("separator",)):
            joints.add(self._take().text)
            met.append(self._relation())
        try:
            joined = (sympy.Union if joints == {"or"} else sympy.Intersection)(*map(region, met))
            return Region(sympy.Intersection(within, joined))
        except NotImplementedError:  # of several unknowns
            if within is not sympy.Reals or len(met) > 1 or not isinstance(met[0], Relation):
                raise
            return met[0]

    def _parts(self) -> list[Any]:
        if self._is("\\}"):
            return []
        parts = [self._relation()]
        while self._is(kinds=("separator",)):
            self._take()
            parts.append(self._relation())
        return parts

    def _matrix(self, kind: str) -> Any:
        if kind not in MATRICES:
            raise ValueError(f"the environment {kind} is not known")
        rows: list[list[Any]] = [[]]
        while not self._is(kinds=("end",)):
            if self._is("\\\\"):
                self._take()
                rows.append([])
            elif self._is("&"):
                self._take()
            else:
                rows[-1].append(self._side())
        self._take()
        return Matrix(tuple(tuple(row) for row in rows if row))
