"""What requests of /v1/responses may hold: items of a conversation, and how to answer it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from interlace.serve.errors import ApiError
from interlace.serve.schema import (
    MOST_TOOLS,
    MOST_TOP,
    Choice,
    Drawing,
    Function,
    NamedSchema,
    ObjectFormat,
    Offer,
    SchemaFormat,
    Strict,
    Text,
    TextFormat,
    Tool,
    arguments_of,
)

Status = Literal["in_progress", "completed", "incomplete"] | None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Message(Strict):
    """A message of anyone."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    id: str | None = None
    status: Status = None
    phase: Literal["commentary", "final_answer"] | None = None


class Thinking(Strict):
    """A thought of an earlier answer."""

    type: Literal["reasoning"]
    summary: list[TextPart]
    content: list[TextPart] | None = None
    id: str | None = None
    status: Status = None
    encrypted_content: None = None


class Called(Strict):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: Text
    id: str | None = None
    status: Status = None


class Result(Strict):
    """What a call has brought."""

    type: Literal["function_call_output"]
    call_id: str
    output: Text | list[TextPart]
    id: str | None = None
    status: Status = None


def _kind(item: Any) -> str:
    """Return the type of an item; one without is a message."""
    given = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "")
    return given if isinstance(given, str) else ""


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[Thinking, Tag("reasoning")]
    | Annotated[Called, Tag("function_call")]
    | Annotated[Result, Tag("function_call_output")],
    Discriminator(_kind),
]


class FlatTool(Offer):
    """A function that is offered."""

    type: Literal["function"]

    def nested(self) -> Tool:
        """Return it as chat completions have it."""
        fields = {name: getattr(self, name) for name in Offer.model_fields}
        return Tool(type="function", function=Offer(**fields))


class FlatChoice(Strict):
    """The one function that must be called."""

    type: Literal["function"]
    name: str

    def choice(self) -> Choice:
        """Return what it says."""
        return Choice("required", (self.name,))


class FlatAllowed(Strict):
    """The functions that may be called; the model reads of all that are offered."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatChoice], Field(min_length=1, max_length=MOST_TOOLS)]

    def choice(self) -> Choice:
        """Return what it says."""
        return Choice(self.mode, tuple(tool.name for tool in self.tools))


class FlatSchema(NamedSchema):
    """An answer that a JSON schema allows."""

    type: Literal["json_schema"]


class Written(Strict):
    """How text is written."""

    format: Annotated[TextFormat | ObjectFormat | FlatSchema, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None

    def nested(self) -> TextFormat | ObjectFormat | SchemaFormat | None:
        """Return the format as chat completions have it."""
        if not isinstance(self.format, FlatSchema):
            return self.format
        fields = {"name": self.format.name, "schema": self.format.schema_, "strict": self.format.strict}
        return SchemaFormat.model_validate({"type": "json_schema", "json_schema": fields})


class Reasoning(Strict):
    """How the model thinks.

    Attributes:
        effort: told to the chat template, if it reads it.
        summary: whether the thought is sent as its own summary too.
    """

    effort: Annotated[str, Field(pattern="^[a-z]{1,16}$")] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class Obfuscation(Strict):
    """Options of a stream, which change no answer."""

    include_obfuscation: bool | None = None


class Ask(Drawing):
    """A request of /v1/responses."""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    instructions: Text | None = None
    previous_response_id: Annotated[str, Field(max_length=128)] | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | FlatAllowed | None = None
    parallel_tool_calls: bool | None = None
    text: Written | None = None
    reasoning: Reasoning | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    n: None = None
    stream_options: Obfuscation | None = None  # type: ignore[assignment]


def turns_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return items as turns of chat templates; what the assistant thought, said and called together is one turn.

    Raises:
        ApiError: the arguments of a call are no JSON object.
    """
    turns: list[dict[str, Any]] = []

    def own(*taken: str) -> dict[str, Any]:
        """Return the assistant's turn that goes on: the last one, unless it has one of these fields already."""
        if not turns or turns[-1]["role"] != "assistant" or any(turns[-1].get(name) for name in taken):
            turns.append({"role": "assistant", "content": ""})
        return turns[-1]

    for item in items:
        if isinstance(item, Thinking):
            parts = item.content or item.summary
            own("content", "reasoning_content", "tool_calls")["reasoning_content"] = "".join(
                part.text for part in parts
            )
        elif isinstance(item, Called):
            arguments = arguments_of(Function(name=item.name, arguments=item.arguments), item.call_id, "input")
            call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": arguments}}
            own().setdefault("tool_calls", []).append(call)
        elif isinstance(item, Result):
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})
        elif item.role == "assistant":
            own("content", "tool_calls")["content"] = _joined(item.content)
        else:
            role = "system" if item.role == "developer" else item.role
            turns.append({"role": role, "content": _joined(item.content)})
    return turns


def _joined(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def with_instructions(instructions: str | None, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return turns that begin with instructions; system turns at the beginning are one, as many templates take one."""
    first = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    texts = [instructions or "", *(turn["content"] for turn in turns[:first])]
    system = "\n\n".join(text for text in texts if text)
    return [*([{"role": "system", "content": system}] if system else []), *turns[first:]]


def size_bytes(turns: Sequence[dict[str, Any]]) -> int:
    """Return how many bytes a conversation takes."""
    return len(json.dumps(turns, ensure_ascii=False).encode("utf-8", "replace"))


def checked_input(asked: Ask) -> list[dict[str, Any]]:
    """Return the turns of a request.

    Raises:
        ApiError: as `turns_of`.
    """
    if isinstance(asked.input, str):
        return [{"role": "user", "content": asked.input}]
    return turns_of(asked.input)


def check_logprobs(asked: Ask) -> int | None:
    """Return how many alternatives come with log-probabilities; None for neither.

    Raises:
        ApiError: alternatives are asked for without what includes them.
    """
    included = "message.output_text.logprobs" in (asked.include or ())
    if asked.top_logprobs and not included:
        raise ApiError(
            400,
            "top_logprobs: needs include to hold 'message.output_text.logprobs'",
            "top_logprobs",
            "invalid_value",
        )
    return (asked.top_logprobs or 0) if included else None
