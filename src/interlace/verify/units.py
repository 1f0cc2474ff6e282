"""Units of measure: one list of their names for all code that reads answers."""

from __future__ import annotations

import re

UNITS = {  # the symbol, and its other names in the singular
    "km": "kilometer kilometre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "m": "meter metre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "kg": "kilogram",
    "mg": "milligram",
    "g": "gram",
    "lb": "pound",
    "oz": "ounce",
    "ml": "mL milliliter millilitre",
    "l": "L liter litre",
    "h": "hour hr",
    "min": "minute",
    "s": "second sec",
    "day": "",
    "week": "",
    "month": "",
    "year": "",
    "mi/h": "mph",
    "km/h": "kph kmh",
    "°": "degree deg",
    "rad": "radian",
    "cent": "",
    "dollar": "",
    "unit": "",
    "%": "percent",
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "V": "volt",
    "A": "ampere amp",
    "K": "kelvin",
    "C": "",
    "F": "",
    "T": "",
    "t": "ton tonne",
}
RAISED = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}  # words before a unit
LETTERS = frozenset([*(s for s in UNITS if len(s) == 1 and s.isalpha()), "L"])
PLAIN_LETTERS = "m|g|h|s|L"  # that are units behind a number and a space without \text too
ATTACHED = "km|cm|mm|kg|ml|mL|ft|mph|degrees?"  # that are units right behind a number; 2m is two times m

_SYMBOLS = {name: symbol for symbol, names in UNITS.items() for name in (symbol, *names.split())}
NAMES = "|".join([*(rf"{n}s?" for n in sorted(_SYMBOLS, key=len, reverse=True) if n.isalpha() and len(n) > 1), *RAISED])
_SYMBOLS |= {name.casefold(): symbol for name, symbol in _SYMBOLS.items() if len(name) > 1}


def unit_of(text: str) -> str:
    """Return one spelling of a unit: kilometers per hour as km/h, square meters as m^2, m s^{-2} as m/s^2."""
    said: list[str] = []
    text = re.sub(r"[.{}*]", "", text)
    text = re.sub(r"([A-Za-z]+)\s{0,4}\^-(\d)", lambda m: f"/{m[1]}" + (f"^{m[2]}" if m[2] != "1" else ""), text)
    for word in re.sub(r"([/^])", r" \1", text).split():
        slash, name = ("/", word[1:]) if word.startswith("/") else ("", word)
        said += [slash] if slash else []
        if name:
            said.append("/" if name == "per" else _symbol(name))
    for word, raised in RAISED.items():
        if word in said[:-1]:
            place = said.index(word)
            said[place : place + 2] = [said[place + 1], raised]
    return "".join(said)


def _symbol(name: str) -> str:
    """Return the symbol of a unit, km for kilometers; an unknown name loses the s of its plural."""
    for known in (name, name.casefold(), name.casefold().rstrip("s")):
        if known in _SYMBOLS:
            return _SYMBOLS[known]
    return name if len(name) == 1 else name.casefold().rstrip("s") or name
