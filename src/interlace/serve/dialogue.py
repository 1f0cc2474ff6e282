"""Answers to conversations: what the model is asked, and thoughts, text and calls told apart as they come."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlace.base.errors import ConfigError
from interlace.data.calls import Call, Calls, Form
from interlace.data.chat import Thought
from interlace.generation.request import Answer, Piece, Request
from interlace.generation.structure import Structure
from interlace.serve.errors import ApiError, of_request
from interlace.serve.flow import merged
from interlace.serve.schema import Choice, Drawing, Format, ObjectFormat, Offer, SchemaFormat, Structured, Tool
from interlace.serve.served import Served
from interlace.serve.tools import structure_of

ANY_OBJECT: dict[str, Any] = {"type": "object"}
ANY_CHOICE = Choice()


@dataclass(frozen=True)
class Made:
    """A call that was made.

    Attributes:
        id: what its result is sent back under.
        call: the call.
    """

    id: str
    call: Call


@dataclass(frozen=True)
class Said:
    """What a piece of an answer brings: text, thought, and calls."""

    text: str = ""
    thought: str = ""
    calls: tuple[Made, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A conversation that is asked.

    Attributes:
        requests: one for each choice.
        opened: whether the prompt has opened a thought.
        form: of calls, or None if there may be none.
        tools: what may be called, as templates read it.
        calls: how many calls the conversation holds already.
    """

    requests: list[Request]
    opened: bool
    form: Form | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0


class Reader:
    """Reads one answer as it comes.

    Attributes:
        called: how many calls it has made.
        thought_tokens: how many tokens its thought has.
    """

    def __init__(self, plan: Plan):
        """Begin."""
        self._plan, self._thought = plan, Thought(plan.opened)
        self._calls = None if plan.form is None else Calls(plan.form, plan.tools)
        self.called = self.thought_tokens = 0

    def push(self, piece: Piece) -> Said:
        """Take a piece; return what it brings."""
        before = self._thought.inside
        text, thought = self._thought.push(piece.text)
        self.thought_tokens += piece.token is not None and (before or self._thought.inside)
        if piece.finish:
            rest = self._thought.end()
            text, thought = text + rest[0], thought + rest[1]
        if self._calls is None:
            return Said(text, thought)
        text, found = self._calls.push(text)
        if piece.finish:
            text += self._calls.end()
        return Said(text, thought, tuple(self._made(call) for call in found))

    def _made(self, call: Call) -> Made:
        form = self._plan.form
        assert form is not None
        number = self._plan.calls + self.called
        self.called += 1
        return Made(form.call_id(call.name, number, secrets.token_hex(12)), call)


async def read_all(served: Served, plan: Plan) -> list[tuple[Answer, Said, Reader]]:
    """Return all answers to a plan: each as it was made, and read.

    Raises:
        ApiError: one cannot be served.
    """
    found = [(Answer(len(request.prompt)), Reader(plan)) for request in plan.requests]
    said: list[list[Said]] = [[] for _ in found]
    async for index, piece in merged(served, plan.requests):
        answer, reader = found[index]
        answer.add(piece)
        said[index].append(reader.push(piece))
    return [(answer, _joined(parts), reader) for (answer, reader), parts in zip(found, said, strict=True)]


def _joined(parts: Sequence[Said]) -> Said:
    text, thought = "".join(one.text for one in parts), "".join(one.thought for one in parts)
    return Said(text, thought, tuple(call for one in parts for call in one.calls))


async def plan_of(
    served: Served,
    asked: Drawing,
    messages: Sequence[Mapping[str, Any]],
    owner: str,
    *,
    most: int | None,
    field: str = "messages",
    tools: Sequence[Tool] = (),
    choice: Choice = ANY_CHOICE,
    parallel: bool = True,
    form: Format | None = None,
    structured: Structured | None = None,
    variables: Mapping[str, Any] | None = None,
    logprobs: int | None = None,
) -> Plan:
    """Return what is asked of the engine.

    Args:
        messages: as chat templates read them.
        most: tokens of the answer; None for as many as fit.
        field: what holds the conversation, for messages.
        tools, choice, parallel: what may be called, what must be, and whether several calls may be made.
        form, structured: the form of the answer.
        variables: what else the template is told.

    Raises:
        ApiError: it cannot be served.
    """
    if choice.mode == "none":
        tools = ()
    offered = [tool.function for tool in _chosen(tools, choice)]
    written = [_plain(tool) for tool in tools]
    if tools and served.form is None:
        raise ApiError(
            400, "tools: the model's chat template writes no tools; leave them out", "tools", "unsupported_parameter"
        )
    text, ids = await served.render(messages, written, variables or {}, field)
    opened = text.rstrip().endswith(Thought.BEGIN)
    after = Thought.END if opened else ""
    try:
        structure = await asyncio.to_thread(_structure, served, offered, choice, parallel, form, structured, after)
        requests = await asyncio.to_thread(
            served.requests,
            asked,
            ids,
            most,
            owner,
            field=field,
            ends=served.ends,
            logprobs=logprobs,
            structure=structure,
            shown=served.shown,
        )
    except ConfigError as error:
        raise of_request(error) from None
    calls = sum(len(message.get("tool_calls") or ()) for message in messages)
    return Plan(requests, opened, served.form if tools else None, written, calls)


def _chosen(tools: Sequence[Tool], choice: Choice) -> Sequence[Tool]:
    """Return the tools that may be called."""
    names = [tool.function.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(400, f"tools: two functions are named '{twice}'", "tools", "invalid_value")
    if not tools and (choice.mode == "required" or choice.names is not None):
        raise ApiError(400, "tool_choice: needs tools", "tool_choice", "invalid_value")
    if wrong := [name for name in choice.names or () if name not in names]:
        known = ", ".join(names[:20])
        raise ApiError(
            400, f"tool_choice: there is no function '{wrong[0]}'; there is {known}", "tool_choice", "invalid_value"
        )
    return [tool for tool in tools if choice.names is None or tool.function.name in choice.names]


def _plain(tool: Tool) -> dict[str, Any]:
    """Return a tool as templates write it."""
    offer = tool.function
    given = {"name": offer.name, "description": offer.description, "parameters": offer.parameters}
    return {"type": "function", "function": {key: value for key, value in given.items() if value is not None}}


def _structure(
    served: Served,
    offered: Sequence[Offer],
    choice: Choice,
    parallel: bool,
    form: Format | None,
    structured: Structured | None,
    after: str,
) -> Structure | None:
    """Return the form of the answer, or None for any.

    Raises:
        ConfigError, ApiError: it cannot be enforced.
    """
    schema = schema_of(form)
    if not offered:
        return structure_without_tools(form, structured, after)
    if structured is not None:
        raise ApiError(
            400,
            "structured_outputs: not together with tools; use response_format, or tool_choice",
            "structured_outputs",
            "invalid_value",
        )
    assert served.form is not None
    forced = choice.mode == "required"
    return structure_of(
        served.form,
        offered,
        served.specials,
        parallel=parallel,
        forced=forced,
        after=after,
        content=None if forced else schema,
    )


def schema_of(form: Format | None) -> dict[str, Any] | None:
    """Return the JSON schema that a format names, or None."""
    if isinstance(form, SchemaFormat):
        return form.json_schema.schema_
    return ANY_OBJECT if isinstance(form, ObjectFormat) else None


def structure_without_tools(form: Format | None, structured: Structured | None, after: str = "") -> Structure | None:
    """Return the form of an answer, or None for any.

    Raises:
        ConfigError, ApiError: it cannot be enforced, or there are two.
    """
    schema = schema_of(form)
    makers: dict[str, Callable[..., Structure]] = {
        "json": Structure.json_schema,
        "regex": Structure.regex,
        "choice": Structure.choice,
        "grammar": Structure.lark,
    }
    given = {} if structured is None else structured.given()
    if structured is not None and (len(given) != 1 or schema is not None):
        raise ApiError(
            400,
            "structured_outputs: must have one of json, regex, choice and grammar, and no response_format beside it",
            "structured_outputs",
            "invalid_value",
        )
    if schema is not None:
        return Structure.json_schema(schema, "response_format", after)
    for kind, value in given.items():
        return makers[kind](value, f"structured_outputs: {kind}", after)
    return None
