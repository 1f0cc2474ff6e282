"""Which JSON schemas a grammar enforces to the letter; the others are refused, with a JSON pointer to what is not.

`llguidance` follows these keywords: tests/generation/test_structure.py draws answers under each, and validates them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from interlace.base.errors import ConfigError

LONGEST, MOST_SCHEMAS, DEEPEST = 64 << 10, 2000, 56  # bytes of a schema, schemas within it, and parts of a pointer
MOST_MULTIPLE = 10_000  # the time that a grammar of multiples takes to make grows with it
SAID = {
    "$comment",
    "$id",
    "$schema",
    "default",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
}
_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
)
DATES = {"date": f"^{_DATE}$", "date-time": f"^{_DATE}[Tt]"}  # a grammar would take 29 February of any year
TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
FORMATS = {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}
NUMBERS = {"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"}
COUNTS = {"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"}
LISTS, TABLES, ONES = (
    {"allOf", "anyOf", "oneOf", "prefixItems"},
    {"$defs", "definitions", "properties"},
    {"additionalProperties", "items"},
)
HINTS = {
    "patternProperties": "name each property under properties",
    "uniqueItems": "leave it out, and check the answer",
    "nullable": 'write "type": [..., "null"]',
    "not": "say what is allowed instead",
    "if": "write the cases under anyOf",
}


def check_schema(schema: Any, field: str) -> None:
    """Check that answers under a schema can be made so that they keep all of it.

    field: what holds it, for messages.

    Raises:
        ConfigError: a keyword is unknown or would not be enforced; the message holds its JSON pointer.
    """
    size = len(json.dumps(schema))
    if size > LONGEST:
        raise ConfigError(f"{field}: must have at most {LONGEST:,} bytes, has {size:,}")
    places: set[str] | None = None
    for count, (pointer, one) in enumerate(schemas(schema)):
        if count >= MOST_SCHEMAS:
            raise ConfigError(f"{field}: must hold at most {MOST_SCHEMAS:,} schemas")
        if pointer.count("/") > DEEPEST:
            raise ConfigError(f"{field}: is nested deeper than {DEEPEST} at #{pointer[:200]}")
        if not isinstance(one, dict | bool):
            raise _wrong(field, pointer, "must be a schema: an object, true or false", one)
        if isinstance(one, dict):
            if "$ref" in one and places is None:
                places = {f"#{place}" for place, _ in schemas(schema)}
            for key, value in one.items():
                _check_keyword(field, f"{pointer}/{escaped(key)}", key, value, places or set())


def enforced(schema: Any) -> Any:
    """Return a checked schema as a grammar is made of it: days are those of the calendar, annotations are left out."""
    if isinstance(schema, list):
        return [enforced(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in TABLES:
            made[key] = {name: enforced(one) for name, one in value.items()}
        elif key in ONES or key in LISTS:
            made[key] = enforced(value)
        elif key != "uniqueItems" and key not in SAID:
            made[key] = value
    if "pattern" in made:
        made["pattern"] = _ascii(made["pattern"])
    if made.get("format") in DATES:
        made["allOf"] = [*made.get("allOf", []), {"pattern": DATES[made["format"]]}]
    return made


def _ascii(pattern: str) -> str:
    r"""Return a pattern whose \d and \w are letters of ASCII, as in JSON Schema; a grammar takes all alphabets."""
    made, within, place = [], False, 0
    while place < len(pattern):
        part = pattern[place : place + 2] if pattern[place] == "\\" else pattern[place]
        place += len(part)
        within = part == "[" or (within and part != "]")
        letters = {"d": "0-9", "w": "0-9A-Za-z_"}.get(part[1:].lower(), "")
        if letters and part[1:].islower():
            part = letters if within else f"[{letters}]"
        elif letters:
            part = f"[^{letters}]"
        made.append(part)
    return "".join(made)


def schemas(schema: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each schema within a schema, itself first, with its JSON pointer."""
    waiting = [(pointer, schema)]
    while waiting:
        place, one = waiting.pop()
        yield place, one
        if not isinstance(one, dict):
            continue
        for key, value in one.items():
            if key in ONES or (key in LISTS and not isinstance(value, list)):
                waiting.append((f"{place}/{key}", value))
            elif key in LISTS:
                waiting += [(f"{place}/{key}/{i}", each) for i, each in enumerate(value)]
            elif key in TABLES and isinstance(value, dict):
                waiting += [(f"{place}/{key}/{escaped(name)}", each) for name, each in value.items()]


def _check_keyword(field: str, pointer: str, key: str, value: Any, places: set[str]) -> None:
    """Check one keyword of a schema."""
    if key in SAID or key in ONES or (key == "uniqueItems" and value is False):
        return
    if key in NUMBERS and _number(value):
        return
    if key in COUNTS and _number(value) and value >= 0 and value == int(value):
        if key == "minProperties" and value > 1:
            raise _wrong(field, pointer, "is enforced up to 1, as a name may come twice; name what is required", value)
        return
    rules = {
        **dict.fromkeys(LISTS, ("must be a list of schemas", isinstance(value, list) and bool(value))),
        **dict.fromkeys(TABLES, ("must be an object of schemas", isinstance(value, dict))),
        **dict.fromkeys(NUMBERS, ("must be a finite number", False)),
        **dict.fromkeys(COUNTS, ("must be a whole number from 0", False)),
        "type": ("must be one of " + ", ".join(sorted(TYPES)) + ", or a list of them", _types(value)),
        "enum": ("must be a list of values", isinstance(value, list) and bool(value)),
        "const": ("", True),
        "required": ("must be a list of names", isinstance(value, list) and all(isinstance(n, str) for n in value)),
        "pattern": ("must be a regular expression of at most 1,000 characters", _short(value)),
        "format": ("is enforced for " + ", ".join(sorted(FORMATS)), isinstance(value, str) and value in FORMATS),
        "multipleOf": (
            f"must be a number above 0, with at most {MOST_MULTIPLE:,} as its digits without the point",
            _number(value) and value > 0 and _digits(value) <= MOST_MULTIPLE,
        ),
        "$ref": (
            "must lead to a schema of this document, such as #/$defs/NAME",
            isinstance(value, str) and value in places,
        ),
    }
    if key not in rules:
        hint = HINTS.get(key, "leave it out, or check the answer yourself")
        raise ConfigError(f"{field}: #{pointer[:300]}: '{key[:60]}' would not be enforced; {hint}")
    rule, kept = rules[key]
    if not kept:
        raise _wrong(field, pointer, rule, value)


def _wrong(field: str, pointer: str, rule: str, value: Any) -> ConfigError:
    return ConfigError(f"{field}: #{pointer[:300]}: {rule}, got {json.dumps(value)[:60]}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _digits(value: float) -> int:
    mantissa = f"{value:.15g}".partition("e")
    return int(mantissa[0].replace(".", "")) if not mantissa[1] else MOST_MULTIPLE + 1


def _types(value: Any) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) and name in TYPES for name in names)


def _short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000


def escaped(key: str) -> str:
    """Return a key as a JSON pointer has it."""
    return key.replace("~", "~0").replace("/", "~1")
