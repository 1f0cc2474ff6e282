"""Calls of tools, as chat templates write them and models make them.

A template's form is not guessed from its name: the form is taken that reads back the call which the template wrote.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interlace.base.errors import ConfigError
from interlace.data.chat import RARE, ChatTemplate

LONGEST = 1 << 20  # characters of a call that is read
PROBE = {"city": "Rome", "count": 7, "parts": {"a": [1, True]}}
NAME = "look_it_up"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "count": {"type": "integer"}, "parts": {"type": "object"}},
        },
    },
}
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Call:
    """One call: a function's name and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Form:
    """How calls are written.

    Attributes:
        kind: "json" (Hermes, Qwen3, Granite 4), "parameters" (Qwen3.5, Nemotron 3), "sections" (Kimi) or "python"
            (Olmo 3).
        begin, end: what stands around a call, or around several.
        lead, tail: what the template writes after `begin` and before `end`.
    """

    kind: str
    begin: str
    end: str
    lead: str = ""
    tail: str = ""

    @property
    def several(self) -> bool:
        """Whether many calls may stand between one `begin` and `end`."""
        return self.kind in ("sections", "python")

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that calls are told by."""
        inner = (CALL_BEGIN, ARGUMENTS, CALL_END) if self.kind == "sections" else ()
        return self.begin, self.end, *inner

    def read(self, body: str, tools: Tools) -> list[Call] | None:
        """Return the calls between `begin` and `end`; None if there is none, or one is not well-formed."""
        if len(body) > LONGEST:
            return None
        try:
            found = _READERS[self.kind](body, _parameters(tools))
        except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
            return None
        return found or None

    def call_id(self, name: str, number: int, fresh: str) -> str:
        """Return the id of a call, the number-th of a conversation; Kimi's template reads the name from it."""
        return f"functions.{name}:{number}" if self.kind == "sections" else f"call_{fresh}"


FORMS = (
    Form("sections", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    Form("json", "<tool_call>", "</tool_call>"),
    Form("parameters", "<tool_call>", "</tool_call>"),
    Form("python", "<function_calls>", "</function_calls>"),
)
CALL_BEGIN, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def form_of(template: ChatTemplate) -> Form | None:
    """Return the form in which a template writes calls, or None if it writes none that is known, or no tools."""
    ask = [{"role": "user", "content": RARE}]
    function = {"name": NAME, "arguments": PROBE}
    answer = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"functions.{NAME}:0", "type": "function", "function": function}],
    }
    try:
        if template.render(ask, True, [TOOL]) == template.render(ask, True):
            return None
        text = template.render([*ask, answer], False, [TOOL]).rpartition(RARE)[2]
    except ConfigError:
        return None
    for form in FORMS:
        body, ended = text.partition(form.begin)[2].partition(form.end)[:2]
        if ended and form.read(body, [TOOL]) == [Call(NAME, PROBE)]:
            first, last = _inner(form.kind, body)
            return replace(form, lead=body[:first], tail=body[last:])
    return None


def _inner(kind: str, body: str) -> tuple[int, int]:
    """Return where a call begins and ends between the marks."""
    if kind == "sections":
        return 0, len(body)
    kept = body.strip()
    first = body.index(kept)
    return first, first + len(kept)


def _parameters(tools: Tools) -> dict[str, dict[str, Any]]:
    """Return the schemas of parameters, by function and name."""
    found = {}
    for tool in tools:
        function = tool["function"]
        schema = function.get("parameters") or {}
        properties = schema.get("properties") if isinstance(schema, dict) else None
        found[function["name"]] = properties if isinstance(properties, dict) else {}
    return found


def _call(name: Any, arguments: Any) -> Call:
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("no call")
    json.dumps(arguments, allow_nan=False)  # a number may be too large for a float
    return Call(name, arguments)


def _read_json(body: str, _: Mapping[str, Any]) -> list[Call]:
    """Read {"name": ..., "arguments": {...}}."""
    given = json.loads(body)
    return [_call(given["name"], given.get("arguments", given.get("parameters", {})))]


def _read_parameters(body: str, parameters: Mapping[str, Any]) -> list[Call]:
    """Read <function=NAME> with a <parameter=KEY> for each argument."""
    head, opened, rest = body.partition("<function=")
    name, _, rest = rest.partition(">")
    inner, closed, after = rest.rpartition("</function>")
    if head.strip() or not opened or not closed or after.strip():
        raise ValueError("no call")
    arguments = {}
    if "\n</parameter>" in inner:  # as templates write it; a value may hold any other mark
        *written, rest = inner.split("\n</parameter>")
        if rest.strip():
            raise ValueError("a parameter has no end")
        for part in written:
            opened, _, value = part.lstrip("\n").partition(">")
            if not opened.startswith("<parameter="):
                raise ValueError("text beside parameters")
            key = opened.removeprefix("<parameter=")
            arguments[key] = _value(value.removeprefix("\n"), parameters.get(name, {}).get(key))
        return [_call(name.strip(), arguments)]
    parts = inner.split("<parameter=")
    if parts[0].strip():
        raise ValueError("text beside parameters")
    for part in parts[1:]:
        key, _, rest = part.partition(">")
        value, closed, after = rest.rpartition("</parameter>")
        if not closed or after.strip():
            raise ValueError("a parameter has no end")
        arguments[key] = _value(value.removeprefix("\n").removesuffix("\n"), parameters.get(name, {}).get(key))
    return [_call(name.strip(), arguments)]


def _value(text: str, schema: Any) -> Any:
    """Return an argument that was written without quotes; its schema says whether it is a text."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string" or texts_of(schema) is not None:
        return text
    if text in ("True", "False", "None"):  # as templates write these
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def texts_of(schema: Any) -> list[str] | None:
    """Return the texts of which an argument is one, by its schema; None if it may be something else."""
    choices = schema.get("enum", [schema.get("const")]) if isinstance(schema, dict) else None
    return choices if isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices) else None


def _read_sections(body: str, _: Mapping[str, Any]) -> list[Call]:
    """Read Kimi's calls: an id that holds the name, and arguments."""
    found, parts = [], body.split(CALL_BEGIN)
    for part in parts[1:]:
        head, opened, rest = part.partition(ARGUMENTS)
        arguments, closed, _rest = rest.partition(CALL_END)
        if not opened or not closed:
            raise ValueError("no call")
        name = head.strip().rpartition(":")[0].removeprefix("functions.")
        found.append(_call(name, json.loads(arguments)))
    return found


def _read_python(body: str, _: Mapping[str, Any]) -> list[Call]:
    """Read calls as Python writes them, with literals alone as arguments."""
    if len(body) > LONGEST // 16:
        raise ValueError("too long")
    found = []
    for line in ast.parse(body.strip()).body:
        call = line.value if isinstance(line, ast.Expr) else None
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("no call")
        arguments = {word.arg: _literal(word.value) for word in call.keywords if word.arg is not None}
        if len(arguments) != len(call.keywords):
            raise ValueError("no call")
        found.append(_call(ast.unparse(call.func), arguments))
    return found


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.List):
        return [_literal(one) for one in node.elts]
    return ast.literal_eval(node)


_READERS: dict[str, Callable[[str, Mapping[str, Any]], list[Call]]] = {
    "json": _read_json,
    "parameters": _read_parameters,
    "sections": _read_sections,
    "python": _read_python,
}


class Calls:
    """Tells calls from the text around them, as it comes.

    Attributes:
        found: how many calls there were.
    """

    def __init__(self, form: Form, tools: Tools):
        """form: of the model's template; tools: what may be called."""
        self._form, self._tools = form, tools
        self._held, self._inside, self.found = "", False, 0
        self._from = 0  # where the next end of a call is looked for

    def push(self, text: str) -> tuple[str, list[Call]]:
        """Take text; return (text that is in no call, calls that are complete)."""
        self._held += text
        shown, calls = "", list[Call]()
        while (mark := self._held.find(self._form.end if self._inside else self._form.begin, self._from)) >= 0:
            if not self._inside:
                before = self._held[:mark]
                shown += before.rstrip() if before.strip() else ""
                self._held = self._held[mark + len(self._form.begin) :]
            elif (read := self._form.read(self._held[:mark], self._tools)) is not None:
                calls += read
                self._held = self._held[mark + len(self._form.end) :]
            else:  # an argument holds the mark
                self._from = mark + len(self._form.end)
                continue
            self._inside, self._from = not self._inside, 0
        if self._inside:
            self._from = max(self._from, len(self._held) - len(self._form.end) + 1)
        else:
            keep = len(self._held) - _waiting(self._held, self._form.begin)
            shown, self._held = shown + self._held[:keep], self._held[keep:]
        self.found += len(calls)
        return shown, calls

    def end(self) -> str:
        """Return what is left; a call without an end is text."""
        held, self._held = self._held, ""
        if self._inside:
            return self._form.begin + held
        return held if not self.found or held.strip() else ""


def _waiting(text: str, mark: str) -> int:
    """Return how many letters at the end of a text may belong to a mark, or be the blanks before it."""
    most = next((k for k in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:k])), 0)
    kept = text[: len(text) - most]
    return most + len(kept) - len(kept.rstrip())
