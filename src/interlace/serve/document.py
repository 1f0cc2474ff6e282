"""The OpenAPI document: what may be asked, made of the classes that read requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from interlace.base.package import VERSION
from interlace.serve.items import Ask
from interlace.serve.schema import Chat, Completion, Detokenize, Tokenize

PLACE = "#/components/schemas/"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
USAGE = {"type": "object", "additionalProperties": True}
MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}},
}


def _object(kind: str, **fields: Any) -> dict[str, Any]:
    """Return the schema of an answer of a kind."""
    properties = {"object": {"const": kind}, **fields}
    return {"type": "object", "required": list(properties), "properties": properties}


CHOICES = {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["index", "finish_reason"]}}
ANSWERS = {
    "completion": _object("text_completion", id={"type": "string"}, choices=CHOICES, usage=USAGE),
    "chat": _object("chat.completion", id={"type": "string"}, choices=CHOICES, usage=USAGE),
    "response": _object(
        "response", id={"type": "string"}, output={"type": "array", "items": {"type": "object"}}, usage=USAGE
    ),
    "models": _object("list", data={"type": "array", "items": MODEL}),
    "tokens": {
        "type": "object",
        "required": ["tokens", "count"],
        "properties": {"tokens": {"type": "array", "items": {"type": "integer"}}, "count": {"type": "integer"}},
    },
    "text": {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
    "health": {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}},
    "deleted": _object("response", id={"type": "string"}, deleted={"const": True}),
}


def document(models: Sequence[str]) -> dict[str, Any]:
    """Return it; models: the names of those that are served."""
    kinds: list[type[BaseModel]] = [Completion, Chat, Ask, Tokenize, Detokenize]
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template=PLACE + "{model}")
    for schema in found["$defs"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] |= {"examples": list(models)}
            if schema["properties"]["model"].get("type") == "string":
                schema["properties"]["model"]["enum"] = list(models)
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    paths = {
        "/v1/models": {"get": _operation("List the models", ANSWERS["models"])},
        "/v1/models/{name}": {"get": _operation("Show a model", MODEL, parameter=name)},
        "/v1/completions": {"post": _operation("Go on from prompts", ANSWERS["completion"], Completion, streams=True)},
        "/v1/chat/completions": {"post": _operation("Answer a conversation", ANSWERS["chat"], Chat, streams=True)},
        "/v1/responses": {"post": _operation("Answer a list of items", ANSWERS["response"], Ask, streams=True)},
        "/v1/responses/{name}": {
            "get": _operation("Show an answer again", ANSWERS["response"], parameter=name),
            "delete": _operation("Forget an answer", ANSWERS["deleted"], parameter=name),
        },
        "/tokenize": {"post": _operation("Say which tokens a text is", ANSWERS["tokens"], Tokenize)},
        "/tokenizer_info": {"get": _operation("Name the tokenizer's marks and chat template", {"type": "object"})},
        "/detokenize": {"post": _operation("Say which text tokens are", ANSWERS["text"], Detokenize)},
        "/health": {"get": _operation("Say whether the server answers", ANSWERS["health"], needs_key=False)},
        "/ready": {"get": _operation("Say whether the server takes requests", ANSWERS["health"], needs_key=False)},
        "/memory": {
            "get": _operation(
                "Say what the state of a sequence takes, and what a transformer's cache would",
                {"type": "object"},
                parameter={
                    "name": "tokens",
                    "in": "query",
                    "required": True,
                    "schema": {"type": "integer", "minimum": 1},
                },
            )
        },
        "/metrics": {"get": _operation("Numbers for Prometheus", None)},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "interlace",
            "version": VERSION,
            "description": "Fields and forms are OpenAI's, and vLLM's where OpenAI has none; see docs/serve.md.",
        },
        "paths": paths,
        "components": {
            "schemas": {**found["$defs"], "Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    said: str,
    answer: dict[str, Any] | None,
    asked: type[BaseModel] | None = None,
    *,
    parameter: dict[str, Any] | None = None,
    streams: bool = False,
    needs_key: bool = True,
) -> dict[str, Any]:
    """Return one operation.

    Args:
        said: what it does.
        answer: the schema of its answer; None for plain text.
        asked: the class of its body.
        parameter: of its path.
        streams: whether it may answer with events.
        needs_key: whether it asks for a key, if the server has any.
    """
    content: dict[str, Any] = {"text/plain": {}} if answer is None else {"application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {}
    wrong = {"content": {"application/json": {"schema": {"$ref": f"{PLACE}Error"}}}}
    operation: dict[str, Any] = {
        "summary": said,
        "responses": {
            "200": {"description": "done", "content": content},
            "default": {"description": "an error", **wrong},
        },
        "security": [{"key": []}] if needs_key else [],
    }
    if asked is not None:
        schema = {"$ref": f"{PLACE}{asked.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if parameter is not None:
        operation["parameters"] = [parameter]
    return operation
