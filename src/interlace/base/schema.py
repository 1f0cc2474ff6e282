"""Configs as data from outside: TOML files with overrides, and closed schemas whose errors name the field."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from interlace.base.errors import ConfigError, nearest
from interlace.base.files import user_path

M = TypeVar("M", bound=BaseModel)


class Closed(BaseModel):
    """A frozen config with no unknown keys, and no number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def validate(schema: type[M], data: Mapping[str, Any], where: str) -> M:
    """Build a config from plain data.

    Raises:
        ConfigError: one line that names the field, the rule, the value and the remedy.
    """
    try:
        return schema.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigError(sentence(schema, error, where)) from None
    except TypeError as error:  # a value that TOML knows and JSON does not, such as a date
        raise ConfigError(f"{where}: {error}; use text, numbers, booleans, lists and tables") from None


def sentence(schema: type[BaseModel], error: ValidationError, where: str) -> str:
    """Return in one line what is wrong; `where` is the table that the schema describes."""
    errors = error.errors(include_url=False)
    first = errors[0]
    path = [str(p) for p in first["loc"]]
    places = [".".join([where, *map(str, e["loc"])]) if where else ".".join(map(str, e["loc"])) for e in errors]
    place = places[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key; {nearest(path[-1], _fields(schema, path[:-1]))}{more}"
    if first["type"] == "missing":
        missing = [p for p, e in zip(places, errors, strict=True) if e["type"] == "missing"]
        others = f" (and {len(errors) - len(missing)} more)" if len(missing) < len(errors) else ""
        return f"{', '.join(missing)}: required, and not given{others}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{place}: {message}{more}" if place else f"{message}{more}"
    return f"{place}: {message[0].lower()}{message[1:]}, got {first['input']!r}{more}"


def _fields(schema: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the fields that the table at `path` may hold."""
    steps = iter(path)
    for step in steps:
        inner = schema.model_fields[step].annotation if step in schema.model_fields else None
        if get_origin(inner) is dict:  # tables by name
            inner = get_args(inner)[1]
            next(steps, None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        schema = inner
    return list(schema.model_fields)


def read_toml(path: Path, what: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML file as plain data with overrides laid over it; `what` names it in errors.

    Raises:
        ConfigError: the file is missing or not TOML, or an override is not dotted.key=value.
    """
    try:
        data = tomllib.loads(user_path(path, ConfigError).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {what}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the {what}, a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    for override in overrides:
        apply_override(data, override)
    return data


def apply_override(data: Any, override: str) -> None:
    """Set one dotted key; the value is TOML, or a plain word. In a list of tables, a table goes by its `name`."""
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override: '{override}' must be dotted.key=value, such as train.learning_rate=1e-3")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    *tables, last = key.split(".")
    for name in tables:
        if isinstance(data, list):  # of tables that have names
            data = _named(data, name, key)
            continue
        data = data.setdefault(name, {})
        if not isinstance(data, dict | list):
            raise ConfigError(f"override: '{key}' goes through '{name}', which is not a table")
    if isinstance(data, list):
        raise ConfigError(f"override: '{key}' must name a key of one of the tables")
    data[last] = value


def _named(tables: list[Any], name: str, key: str) -> Any:
    """Return the table of a list that has a name."""
    found = next((one for one in tables if isinstance(one, dict) and one.get("name") == name), None)
    if found is None:
        names = [str(one["name"]) for one in tables if isinstance(one, dict) and "name" in one]
        raise ConfigError(f"override: '{key}': no table is called '{name}'; {nearest(name, names)}")
    return found
