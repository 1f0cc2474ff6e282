"""Answers that are JSON: read, and held against a schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from interlace.base.errors import BackendUnavailable, ConfigError
from interlace.base.files import read_json

FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL | re.IGNORECASE)

Schema = dict[str, Any]


def read_schema(schema: Schema | str | None, folder: Path, where: str) -> Schema | None:
    """A schema that stands in a recipe, or in a file that it names, if it is one.

    Raises:
        ConfigError: it is no JSON schema; DataError: the file is missing or is not JSON.
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
            f"{where}.schema: needs jsonschema; install it with `pip install 'interlace[distill]'`"
        ) from None
    try:
        jsonschema.validators.validator_for(found).check_schema(found)
    except jsonschema.SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "it"
        raise ConfigError(f"{where}.schema: is no JSON schema: {place}: {error.message[:200]}") from None
    return found


def as_json(text: str) -> tuple[Any, str]:
    """(the value, "") of a text that is JSON, also between fences; (None, what is wrong) of any other."""
    fenced = FENCE.match(text)
    try:
        return json.loads(fenced.group(1) if fenced else text), ""
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON ({error})"


def fitting(text: str, schema: Schema) -> tuple[Any, str]:
    """(the value, "") of an answer that fits a schema; (None, what is wrong) of one that does not.

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
