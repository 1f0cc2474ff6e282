"""Read tokens as values: numbers and formulas as sympy expressions, and shapes that hold several of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sympy

from interlace.verify.brackets import Brackets
from interlace.verify.notation import Token, clean, tokens
from interlace.verify.shapes import (
    DEGREE,
    TRIGONOMETRY,
    Group,
    Members,
    Quantity,
    Region,
    Relation,
    Several,
    Words,
    applied,
    binomial,
    divided,
    factorial,
    number,
    periodic,
    power,
    region,
    root,
)
from interlace.verify.spelling import normal
from interlace.verify.units import unit_of

LONGEST = 2000  # characters
LONGEST_NAME = 3  # letters that are read as a product, as in xyz
NAMED = re.compile(
    r"^[A-Za-z](?:_\{?\w\}?)?(?:\^\{-1\})?\s*\(\s*\\?[A-Za-z]+(?:\s*,\s*\\?[A-Za-z]+)*\s*\)\s*=(?!=)"
)  # f(x) =, which names what follows


def read(text: str) -> Any:
    """Return what a text means: a sympy expression, or a shape of them; Words if it is no mathematics."""
    if len(text) > LONGEST:
        return Words(text, f"an expression of {len(text):,} characters; the most is {LONGEST:,}")
    source = NAMED.sub("", clean(text))
    try:
        pieces, joints = _parted(tokens(source))
    except ValueError as error:
        return Words(normal(source), str(error))
    parts: list[Any] = []
    for piece in pieces:
        said = _item(piece, source)
        parts.extend(said.parts if isinstance(said, Several) else (said,))
    if len(parts) == 1:
        return parts[0]
    return Several(tuple(parts), joints.pop() if len(joints) == 1 else ",")


def _parted(found: list[Token]) -> tuple[list[list[Token]], set[str]]:
    """Return (tokens between the separators that stand in no bracket, the separators)."""
    pieces: list[list[Token]] = [[]]
    joints = set()
    depth = 0
    for token in found:
        depth += (token.text in ("(", "[", "{", "\\{")) - (token.text in (")", "]", "}", "\\}"))
        depth += (token.kind == "begin") - (token.kind == "end")
        if token.kind == "separator" and depth <= 0:
            pieces.append([])
            joints.add("," if token.text == ";" else token.text)
        else:
            pieces[-1].append(token)
    return [p for p in pieces if p] or [[]], joints


def _item(piece: list[Token], source: str) -> Any:
    """Return one value; with a plus-or-minus sign in it, both values."""
    text = normal(source[piece[0].start : piece[-1].end]) if piece else ""
    try:
        if not piece:
            raise ValueError("there is nothing")
        if any(t.text in ("pm", "mp") for t in piece):
            return Several(tuple(Reader(piece, plus).whole() for plus in (1, -1)))
        if all(t.kind == "letters" for t in piece):
            product = Reader(piece).whole() if len(piece) == 1 and len(piece[0].text) <= LONGEST_NAME else None
            return Words(text, "it is a word", product)
        return Reader(piece).whole()
    except ValueError as error:
        return Words(text, str(error))
    except (TypeError, ArithmeticError, AttributeError, NotImplementedError, RecursionError) as error:
        return Words(text, f"sympy cannot take it ({type(error).__name__})")  # such as log() or sqrt(1, 2, 3)


class Reader(Brackets):
    """Reads the tokens of one item, from the operator that binds least to the one that binds most."""

    # --- items

    def whole(self) -> Any:
        """Return the item that all tokens make.

        Raises:
            ValueError: they make none.
        """
        said = self._relation()
        if (left := self._next()) is not None:
            raise ValueError(f"{left.text!r} is not known there")
        return said

    def _relation(self) -> Any:
        sides, signs = [self._side()], []
        while self._is(kinds=("relation",)):
            signs.append(self._take().text)
            sides.append(self._side())
        if not signs:
            return sides[0]
        if signs == ["in"]:
            return sides[1]
        if "in" in signs:
            raise ValueError("`in` stands among other relations")
        return Relation(tuple(signs), tuple(sides))

    def _side(self) -> Any:
        """Return one side of a relation: sets joined, or a sum with its unit."""
        said = self._sum()
        while self._command("cup", "cap", "setminus"):
            name = self._take().text
            one, other = region(said), region(self._sum())
            made = {"cup": sympy.Union, "cap": sympy.Intersection, "setminus": sympy.Complement}[name]
            said = Region(made(one, other))
        if self._command("over"):
            self._take()
            said = divided(said, self._sum())
        elif self._command("choose"):
            self._take()
            said = binomial(said, self._sum())
        unit: list[str] = []
        while self._is(kinds=("unit", "word")) or (unit and self._is("/", "*")):
            unit.append(self._take().text)
        if isinstance(said, sympy.Expr) and said.has(DEGREE) and not self._depth:
            said, unit = said.subs(DEGREE, 1), ["°"]
        return Quantity(number(said), unit_of(" ".join(unit))) if unit else said

    def _sum(self) -> Any:
        total = self._signed(self._product)
        while self._is("+", "-") or self._command("pm", "mp"):
            minus = self._minus(self._take())
            part = number(self._product())
            total = number(total) - part if minus else number(total) + part
        return total

    def _minus(self, token: Token) -> bool:
        return token.text == "-" or {"pm": self._plus, "mp": -self._plus}.get(token.text, 1) < 0

    def _signed(self, inner: Callable[[], Any]) -> Any:
        minus = signed = False
        while self._is("+", "-") or self._command("pm", "mp"):
            minus, signed = minus != self._minus(self._take()), True
        said = inner()
        if not signed:
            return said
        return -number(said) if minus else number(said)

    def _product(self) -> Any:
        said = self._power()
        while True:
            if self._is("*"):
                self._take()
                said = number(said) * number(self._signed(self._power))
            elif self._is("/"):
                self._take()
                said = divided(said, self._signed(self._power))
            elif self._begins_a_factor():
                said = self._beside(said)
            else:
                return said

    def _beside(self, said: Any) -> Any:
        """Return a factor that follows without a sign; beside a whole number a fraction is added, as in 3 1/2."""
        before, token = self._found[self._place - 1], self._next()
        assert token is not None
        if before.kind == "number" and token.kind == "number":
            above, slash, below = self._take(), self._expect("/"), self._take()
            texts = (before.text, above.text, below.text)
            if (
                slash
                and below.kind == "number"
                and all(t.isdigit() for t in texts)
                and int(above.text) < int(below.text)
            ):
                return number(said) + divided(sympy.Rational(above.text), sympy.Rational(below.text))
            raise ValueError("two numbers stand beside each other")
        if before.kind == "number" and before.text.isdigit() and self._command("frac"):
            part = self._power()
            proper = isinstance(part, sympy.Rational) and 0 < part < 1
            return number(said) + part if proper else number(said) * number(part)
        return number(said) * number(self._power())

    def _begins_a_factor(self) -> bool:
        if self._is("|"):
            return not self._bars
        if self._is("["):
            return not self._squares
        if self._is("(", "{", "\\{"):
            return True
        if self._command("frac", "sqrt", "binom", "lfloor", "lceil"):
            return True
        return self._is(kinds=("number", "period", "letter", "letters", "function", "constant"))

    def _power(self) -> Any:
        base = self._postfixed(self._atom())
        if not self._is("^"):
            return base
        self._take()
        return power(number(base), number(self._signed(self._power if not self._is("{") else self._braces)))

    def _postfixed(self, said: Any) -> Any:
        while self._is("!", "°"):
            said = factorial(number(said)) if self._take().text == "!" else number(said) * DEGREE
        return said

    # --- atoms

    def _atom(self) -> Any:
        token = self._take()
        if token.kind == "number":
            return self._in_base(token.text) if self._is("_") else sympy.Rational(token.text)
        if token.kind == "period":
            return periodic(token.text)
        if token.kind == "letter":
            return self._letter(token.text)
        if token.kind == "letters":
            return self._letters(token)
        if token.kind == "constant":
            return sympy.pi if token.text == "pi" else sympy.oo
        if token.kind == "function":
            return self._function(token.text)
        if token.kind == "begin":
            return self._matrix(token.text)
        if token.kind == "command":
            return self._of_command(token.text)
        if token.kind == "sign" and token.text in ("(", "[", "{", "\\{", "|"):
            return self._bracket(token.text)
        raise ValueError(f"{token.text!r} is not known there")

    def _letter(self, name: str) -> Any:
        if self._is("_"):
            self._take()
            inside = self._until_closed() if self._is("{") else self._take().text
            return sympy.Symbol(f"{name}_{inside}", real=True)
        if name in ("i", "e"):
            return {"i": sympy.I, "e": sympy.E}[name]
        return sympy.Symbol(name, real=True)

    def _in_base(self, digits: str) -> Any:
        """Return a number written in another base: 10_3 is three."""
        self._take()
        base = int(self._until_closed() if self._is("{") else self._take().text)
        if base < 2:
            raise ValueError(f"a number in base {base}")
        return sympy.Integer(int(digits, base))

    def _letters(self, token: Token) -> Any:
        """Return letters beside each other as a product; after a number and a space they are a word, as in 5 cats."""
        before = self._found[self._place - 2] if self._place > 1 else None
        word = before is not None and before.kind in ("number", "letters") and token.after_space
        if len(token.text) > LONGEST_NAME or word:
            raise ValueError(f"{token.text!r} is not known")
        found = [Token("letter", c, token.start, token.end, False) for c in token.text]
        self._found = [*self._found[: self._place - 1], *found, *self._found[self._place :]]
        self._place -= 1
        return self._atom()

    def _of_command(self, name: str) -> Any:
        if name == "frac":
            return divided(self._argument(), self._argument())
        if name == "binom":
            return binomial(self._argument(), self._argument())
        if name == "emptyset":
            return Members(())
        if name == "reals":
            return Group("(", ")", (-sympy.oo, sympy.oo))
        if name in ("lfloor", "lceil"):
            said = number(self._sum())
            self._expect(name.replace("l", "r", 1))
            return sympy.floor(said) if name == "lfloor" else sympy.ceiling(said)
        raise ValueError(f"\\{name} is not known")

    def _argument(self) -> Any:
        """Return the argument of a command: braces, or one sign, such as the 1 of \\frac12."""
        if self._is("{"):
            return self._braces()
        token = self._next()
        if token is not None and token.kind == "number" and len(token.text) > 1:
            rest = token._replace(text=token.text[1:], start=token.start + 1)
            self._found = [*self._found[: self._place], rest, *self._found[self._place + 1 :]]
            return sympy.Rational(token.text[0])
        return self._atom()

    def _function(self, name: str) -> Any:
        """Return a function; its base or power may stand before its argument, which may have no bracket."""
        base = raised = None
        while self._is("_", "^"):
            if self._take().text == "_":
                base = number(self._argument())
            else:
                raised = number(self._signed(self._argument))
        if name == "sqrt":
            degree = number(self._degree()) if self._is("[") else sympy.Integer(2)
            return root(number(self._argument_of(name)), degree)
        given = self._argument_of(name)
        parts = given.parts if isinstance(given, Group) and given.open == "(" else (given,)
        if raised == -1 and name in TRIGONOMETRY[:3]:
            name, raised = f"a{name}", None
        said = applied(name, [number(p) for p in parts], base)
        return power(said, raised) if raised is not None else said

    def _degree(self) -> Any:
        self._expect("[")
        self._squares += 1
        said = self._sum()
        self._squares -= 1
        self._expect("]")
        return said

    def _argument_of(self, name: str) -> Any:
        if self._is("(", "{", "|"):
            return self._bracket(self._take().text)
        if name == "sqrt":
            return self._atom()
        said = number(self._signed(self._power))
        while self._is(kinds=("number", "letter", "letters", "constant")) or self._command("frac"):
            said = number(self._beside(said))
        return said
