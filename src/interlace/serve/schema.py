"""What requests may hold. A field that is not served is refused by name, never ignored, unless it changes no answer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from interlace.serve.errors import ApiError

MOST_CHOICES, MOST_TOP, MOST_STOPS, MOST_BIASES, MOST_PROMPTS, MOST_TOOLS = 16, 20, 16, 1024, 64, 128

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4 << 20)]


class Strict(BaseModel):
    """A table whose fields are all known."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """How a stream ends.

    Attributes:
        include_usage: whether a last chunk says how many tokens were read and made.
    """

    include_usage: bool = False


class Drawing(Strict):
    """What all kinds of completions have in common; names and ranges are OpenAI's, and vLLM's where OpenAI has none."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]], Field(max_length=MOST_BIASES)
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # They change no answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class TextFormat(Strict):
    """An answer of any form."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema; it is always enforced as a whole."""

    name: Annotated[str, Field(max_length=64)]
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Strict):
    """An answer that a JSON schema allows."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Structured(Strict):
    """The form of an answer, under vLLM's name `structured_outputs`; one of the fields.

    Attributes:
        json_: a JSON schema.
        regex: a regular expression that the whole answer matches.
        choice: texts of which the answer is one.
        grammar: in llguidance's dialect of Lark.
    """

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: list[Text] | None = None
    grammar: Text | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that are given, by their names in a request."""
        fields = {"json": self.json_, "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        return {name: value for name, value in fields.items() if value is not None}


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
PROMPTS: dict[str, Any] = {  # what completions.prompts_of reads
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS, "items": {"type": "string"}},
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS, "items": _IDS},
    ]
}


class Completion(Drawing):
    """A request of /v1/completions."""

    prompt: Annotated[Text | list[Any], WithJsonSchema(PROMPTS)]
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    response_format: Format | None = None
    structured_outputs: Structured | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: None = None
    store: Literal[False] | None = None


class Function(Strict):
    """A function that was called."""

    name: str
    arguments: str


def arguments_of(function: Function, name: str, field: str) -> dict[str, Any]:
    """Return the arguments of a call.

    Args:
        function: what was called.
        name: the call's id; field: what holds it; for messages.

    Raises:
        ApiError: they are no JSON object.
    """
    try:
        arguments = json.loads(function.arguments or "{}")
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        said = f"the arguments of the call '{name[:40]}' must be a JSON object, got {function.arguments[:40]!r}"
        raise ApiError(400, f"{field}: {said}", field, "invalid_value")
    return arguments


class Call(Strict):
    """A call of a tool in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: Function

    def plain(self) -> dict[str, Any]:
        """Return the call as chat templates read it: its arguments are an object.

        Raises:
            ApiError: they are not.
        """
        arguments = arguments_of(self.function, self.id, "messages")
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


class Part(Strict):
    """A part of a turn's content."""

    type: Literal["text"]
    text: Text


class Turn(Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: str | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return the turn as chat templates read it."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        content = self.content
        turn["content"] = "".join(part.text for part in content) if isinstance(content, list) else content or ""
        if thought := self.reasoning_content or self.reasoning:
            turn["reasoning_content"] = thought
        if self.tool_calls:
            turn["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            turn["name"] = self.name
        return turn


class Offer(Strict):
    """A function that may be called.

    Attributes:
        parameters: a JSON schema of its arguments; None for none.
        strict: whether all of the schema must be enforced; else what can be.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that a request offers."""

    type: Literal["function"]
    function: Offer


class Named(Strict):
    """The name of a function."""

    name: str


@dataclass(frozen=True)
class Choice:
    """Which tools may be called, and whether one must be.

    Attributes:
        mode: none, auto or required.
        names: of the functions that may be called, or None for all.
    """

    mode: str = "auto"
    names: tuple[str, ...] | None = None

    @staticmethod
    def of(given: str | Chooses | None) -> Choice:
        """Return what a request's `tool_choice` says."""
        return Choice(given or "auto") if given is None or isinstance(given, str) else given.choice()


class Chooses(Protocol):
    """A `tool_choice` that names functions."""

    def choice(self) -> Choice:
        """Return what it says."""


class OneTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: Named

    def choice(self) -> Choice:
        """Return what it says."""
        return Choice("required", (self.function.name,))


class SomeTools(Strict):
    """Tools of those that are offered, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[OneTool], Field(min_length=1, max_length=MOST_TOOLS)]


class AllowedTools(Strict):
    """The tools that may be called; the model reads of all that are offered."""

    type: Literal["allowed_tools"]
    allowed_tools: SomeTools

    def choice(self) -> Choice:
        """Return what it says."""
        some = self.allowed_tools
        return Choice(some.mode, tuple(tool.function.name for tool in some.tools))


class Variables(Strict):
    """What a chat template may be told beside the conversation."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: Annotated[str, Field(pattern="^[a-z]{1,16}$")] | None = None


class Chat(Drawing):
    """A request of /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    response_format: Format | None = None
    structured_outputs: Structured | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | OneTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Field(pattern="^[a-z]{1,16}$")] | None = None
    chat_template_kwargs: Variables | None = None
    store: Literal[False] | None = None


class Tokenize(Strict):
    """A request of /tokenize.

    Attributes:
        add_special_tokens: whether the text begins as the tokenizer begins texts.
    """

    model: str | None = None
    prompt: Text
    add_special_tokens: bool = True


class Detokenize(Strict):
    """A request of /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


_FIELD = re.compile("[a-z][a-z0-9_]*")  # other parts of a place name a kind of value


def parsed(kind: type[BaseModel], body: Any) -> Any:
    """Return a request of a kind.

    Raises:
        ApiError: a field is unknown, missing or out of range; it is named.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "body: must be a JSON object", code="invalid_type")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Where several kinds are allowed, what goes furthest into the value is about the kind that was meant.
        first = max(found, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
        place = [str(part) for part in first["loc"] if isinstance(part, int) or _FIELD.fullmatch(part)]
        field = place[0] if place else None
        path = ".".join(place[:4])
        if first["type"] == "extra_forbidden":
            raise ApiError(400, f"{path}: is not served here; leave it out", field, "unsupported_parameter") from None
        if first["type"] == "missing":
            raise ApiError(400, f"{path}: is missing", field, "missing_required_parameter") from None
        message = first["msg"][0].lower() + first["msg"][1:]
        raise ApiError(400, f"{path}: {message}", field, "invalid_value") from None
