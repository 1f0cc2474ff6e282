"""Answers that are JSON: read them, and compare them with a schema."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from interlace.base.errors import BackendUnavailable, ConfigError
from interlace.base.files import read_json

FENCE = "```"
LONGEST = 1 << 20  # characters of an answer that is read as JSON

Schema = dict[str, Any]


def read_schema(schema: Schema | str | None, folder: Path, where: str) -> Schema | None:
    """Return the schema that stands in a recipe, or in the file that it names; None if there is none.

    Raises:
        ConfigError: it is no JSON schema. DataError: the file is missing or is not JSON.
        BackendUnavailable: jsonschema is not installed.
    """
    if schema is None:
        return None
    found = read_json(folder / schema, "the schema") if isinstance(schema, str) else schema
    if not isinstance(found, dict):
        raise ConfigError(f"{where}.schema: {schema}: holds a {type(found).__name__}, not a schema, which is an object")
    try:
        import jsonschema
    except ImportError:
        raise BackendUnavailable(
            f'{where}.schema: needs jsonschema; install it with `pip install -e ".[distill]"`'
        ) from None
    try:
        jsonschema.validators.validator_for(found).check_schema(found)
    except jsonschema.SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "it"
        raise ConfigError(f"{where}.schema: is no JSON schema: {place}: {error.message[:200]}") from None
    return found


def as_json(text: str) -> tuple[Any, str]:
    """Return (the value, "") of a text that is JSON, also between fences; (None, what is wrong) of any other."""
    if len(text) > LONGEST:
        return None, f"it has {len(text):,} characters; the most is {LONGEST:,}"
    try:
        return strict_json(_unfenced(text.strip("\ufeff \t\r\n"))), ""
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON ({error})"


def strict_json(text: str) -> Any:
    """Return JSON as every reader accepts it: no NaN, no number too large for a float, no key twice.

    Raises:
        ValueError, RecursionError: it is not such JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r:.80} stands twice")
        return table

    def no_constant(word: str) -> Any:
        raise ValueError(f"{word} is no number of JSON")

    def finite(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise ValueError(f"the number {digits[:40]} is too large")
        return value

    return json.loads(text, object_pairs_hook=once, parse_constant=no_constant, parse_float=finite)


def _unfenced(text: str) -> str:
    """Return the text between a fence at the start and one at the end."""
    first, newline, rest = text.partition("\n")
    word = first.removeprefix(FENCE).strip().lower()
    if not (newline and first.startswith(FENCE) and word in ("", "json") and rest.rstrip().endswith(FENCE)):
        return text
    return rest.rstrip().removesuffix(FENCE)


def fitting(text: str, schema: Schema) -> tuple[Any, str]:
    """Return (the value, "") of an answer that fits a schema; (None, what is wrong) of one that does not.

    A pattern in a schema may take for ever: call it in a worker.
    """
    import jsonschema

    value, wrong = as_json(text)
    if wrong:
        return None, wrong
    try:
        jsonschema.validate(value, schema)
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "the answer"
        return None, f"{where}: {error.message[:200]}"
    return value, ""
