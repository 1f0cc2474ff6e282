"""Tools: what a request offers, and the form in which the model must call them."""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from interlace.base.errors import ConfigError
from interlace.data.calls import ARGUMENTS, CALL_BEGIN, CALL_END, Form, texts_of
from interlace.generation.enforced import check_schema, enforced, escaped
from interlace.generation.structure import Structure, spaced
from interlace.serve.schema import Offer

ANYTHING: dict[str, Any] = {"type": "object"}
FREE = {"description", "title", "type"}  # of a parameter that is any text


def structure_of(
    form: Form,
    functions: Sequence[Offer],
    specials: Mapping[str, int],
    *,
    parallel: bool,
    forced: bool,
    after: str,
    content: Any = None,
) -> Structure:
    """Return the form of an answer that may call, or must.

    Args:
        functions: what may be called.
        specials: ids of special tokens, by their texts.
        parallel: whether there may be several calls.
        forced: whether the answer is a call; else text that may hold calls.
        after: the text after which an answer begins, such as the end of a thought; "" for at once.
        content: a JSON schema for answers that are no calls, or None.

    Raises:
        ConfigError: a function that asks for it cannot be called strictly, or `content` would not be enforced.
    """
    rules = _Rules(form, specials)
    body = rules.body(functions, parallel)
    if not forced and content is None:
        made = Structure.lark(rules.text(f"start: {body}"), "tools", form.begin)
        return replace(made, first=after, again=parallel)
    whole = f"/\\n{{0,2}}/ {rules.literal(form.begin)} {body}"
    if parallel and not form.several:
        whole = f"({whole}){{1,16}}"
    if not forced:
        check_schema(content, "response_format")
        rules.json("content", enforced(content))
        whole = f"{whole} | /\\n{{0,2}}/ content"
    return Structure.lark(rules.text(f"start: {whole}"), "tools", after)


class _Rules:
    """The rules of a grammar as they are written."""

    def __init__(self, form: Form, specials: Mapping[str, int]):
        self._form, self._specials = form, specials
        self._lines: list[str] = []
        self._schemas: dict[str, Any] = {}

    def schema(self, one: Offer) -> Any:
        """Return a function's parameters as they are enforced; they are checked once."""
        if one.name not in self._schemas:
            self._schemas[one.name] = _schema(one)
        return self._schemas[one.name]

    def text(self, start: str) -> str:
        """Return the grammar."""
        return "\n".join([start, *self._lines])

    def add(self, name: str, rule: str) -> str:
        """Add a rule; return its name."""
        self._lines.append(f"{name}: {rule}")
        return name.partition("[")[0]

    def literal(self, text: str) -> str:
        """Return a text as a rule writes it; special tokens are one token each."""
        return f"<[{self._specials[text]}]>" if text in self._specials else json.dumps(text)

    def body(self, functions: Sequence[Offer], parallel: bool) -> str:
        """Return the rule of what follows the first mark, the last mark included."""
        form, end = self._form, self.literal(self._form.end)
        lead, tail = (json.dumps(text) if text else "" for text in (form.lead, form.tail))
        if form.kind == "json":
            calls = [
                {
                    "type": "object",
                    "properties": {
                        "name": {"const": one.name},
                        "arguments": _moved(self.schema(one), f"/anyOf/{number}/properties/arguments"),
                    },
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
                for number, one in enumerate(functions)
            ]
            return f"{lead} {self.json('call', {'anyOf': calls})} {tail} {end}"
        write = {"parameters": self._parameters, "sections": self._section, "python": self._python}[form.kind]
        call = self.add("call", " | ".join(write(number, one) for number, one in enumerate(functions)))
        between = '"\\n"' if form.kind == "python" else ""
        more = f"({between} {call}){{0,15}}" if parallel and form.several else ""
        return f"{lead} {call} {more} {tail} {end}"

    def json(self, name: str, schema: Any) -> str:
        return self.add(name, f"%json {json.dumps(spaced(schema))}")

    def _section(self, number: int, one: Offer) -> str:
        arguments, begin = self.json(f"arguments_{number}", self.schema(one)), self.literal(CALL_BEGIN)
        name = json.dumps(f"functions.{one.name}:")
        rule = f"{begin} {name} /[0-9]{{1,4}}/ {self.literal(ARGUMENTS)} {arguments} {self.literal(CALL_END)}"
        return self.add(f"function_{number}", rule)

    def _parameters(self, number: int, one: Offer) -> str:
        parts = [json.dumps(f"<function={one.name}>\n")]
        named, required = _properties(self.schema(one))
        for place, (key, schema) in enumerate(named.items()):
            name = f"p_{number}_{place}"
            if _is_text(schema):
                _check_free(one, key, schema)
                value = self.add(f'{name}_v[suffix="\\n</parameter>\\n"]', r"/(.|\n)*/")
            elif texts := texts_of(schema):
                value = "(" + " | ".join(json.dumps(text) for text in texts) + ') "\\n</parameter>\\n"'
            else:
                value = self.json(f"{name}_v", _within(self.schema(one), key)) + ' "\\n</parameter>\\n"'
            part = self.add(name, f"{json.dumps(f'<parameter={key}>' + chr(10))} {value}")
            parts.append(part if key in required else f"{part}?")
        if not named:
            value = self.add(f'any_{number}_v[suffix="\\n</parameter>\\n"]', r"/(.|\n)*/")
            parts.append(f'("<parameter=" /[A-Za-z_][A-Za-z0-9_]{{0,63}}/ ">\\n" {value}){{0,16}}')
        parts.append('"</function>"')
        return self.add(f"function_{number}", " ".join(parts))

    def _python(self, number: int, one: Offer) -> str:
        names = [*one.name.split("."), *_properties(self.schema(one))[0]]
        if wrong := next((name for name in names if not name.isidentifier() or keyword.iskeyword(name)), None):
            raise ConfigError(f"tools: {one.name}: this model calls as Python does, where '{wrong[:60]}' is no name")
        named, required = _properties(self.schema(one))
        ordered = sorted(named, key=lambda key: key not in required)
        parts = []
        for place, key in enumerate(ordered):
            schema = named[key]
            if isinstance(schema, dict) and schema.get("type") == "boolean":
                value = '("True" | "False")'
            else:
                value = self.json(f"p_{number}_{place}_v", _within(self.schema(one), key))
            comma = '", "' if place else ""
            part = self.add(f"p_{number}_{place}", f"{comma} {json.dumps(key + '=')} {value}")
            parts.append(part if key in required else f"{part}?")
        if parts and not required:
            parts = [f"({parts[0].removesuffix('?')} {' '.join(parts[1:])})?"]
        return self.add(f"function_{number}", " ".join([json.dumps(one.name + "("), *parts, '")"']))


def _schema(one: Offer) -> Any:
    """Return a function's parameters as they are enforced: any object if they cannot be, and it is not strict."""
    given = one.parameters or {"type": "object", "properties": {}}
    try:
        check_schema(given, f"tools: {one.name}: parameters")
    except ConfigError:
        if one.strict:
            raise
        return ANYTHING
    return enforced(given)


def _properties(schema: Any) -> tuple[dict[str, Any], set[str]]:
    """Return a function's parameters by name, and which are required."""
    named = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return named, set(schema.get("required", ())) & set(named)


def _within(whole: Any, key: str) -> Any:
    """Return a parameter's schema by itself; what it refers to comes with it."""
    schema = whole["properties"][key]
    if "$ref" not in json.dumps(schema):
        return schema
    return {"$defs": {"whole": _moved(whole, "/$defs/whole")}, "$ref": f"#/$defs/whole/properties/{escaped(key)}"}


def _moved(schema: Any, place: str) -> Any:
    """Return a schema whose references hold where it stands at a place of another."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items() if key not in ("const", "enum")}
    kept = {key: schema[key] for key in ("const", "enum") if key in schema}
    refers = isinstance(schema.get("$ref"), str)
    return {**moved, **kept, **({"$ref": f"#{place}{schema['$ref'][1:]}"} if refers else {})}


def _is_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string" and texts_of(schema) is None


def _check_free(one: Offer, key: str, schema: Mapping[str, Any]) -> None:
    bound = sorted(set(schema) - FREE)
    if one.strict and bound:
        raise ConfigError(
            f"tools: {one.name}: parameters: #/properties/{key}/{bound[0]}: '{bound[0]}' would not be enforced, as "
            "this model writes texts without quotes; leave it out, or strict"
        )
