"""POST /v1/chat/completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from interlace.generation.request import Answer
from interlace.serve.answers import DONE, Events, chat_logprobs, event, finish, usage
from interlace.serve.dialogue import Made, Plan, Reader, plan_of, read_all
from interlace.serve.errors import ApiError
from interlace.serve.flow import merged
from interlace.serve.schema import Chat, Choice
from interlace.serve.served import Served


async def planned(served: Served, asked: Chat, owner: str) -> Plan:
    """Return what is asked of the engine.

    Raises:
        ApiError: it cannot be served.
    """
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", "top_logprobs", "invalid_value")
    variables = {} if asked.chat_template_kwargs is None else asked.chat_template_kwargs.model_dump(exclude_none=True)
    if asked.reasoning_effort is not None:
        variables["reasoning_effort"] = asked.reasoning_effort
    return await plan_of(
        served,
        asked,
        [turn.plain() for turn in asked.messages],
        owner,
        most=asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens,
        tools=asked.tools or (),
        choice=Choice.of(asked.tool_choice),
        parallel=asked.parallel_tool_calls is not False,
        form=asked.response_format,
        structured=asked.structured_outputs,
        variables=variables,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )


def _head(served: Served, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": served.name}


def _thought(thought: str) -> dict[str, str]:
    """Return a thought under both names that clients read."""
    return {"reasoning_content": thought, "reasoning": thought} if thought else {}


def _called(made: Made) -> dict[str, Any]:
    arguments = json.dumps(made.call.arguments, ensure_ascii=False)
    return {"id": made.id, "type": "function", "function": {"name": made.call.name, "arguments": arguments}}


def _reason(reason: str, calls: int) -> str | None:
    """Return why a choice ended."""
    return "tool_calls" if calls and reason == "stop" else finish(reason)


def _usage(found: Sequence[Answer], readers: Sequence[Reader]) -> dict[str, Any]:
    return usage(found, sum(reader.thought_tokens for reader in readers))


async def whole(served: Served, asked: Chat, plan: Plan) -> dict[str, Any]:
    """Return a whole answer."""
    found, choices = await read_all(served, plan), []
    for index, (answer, said, reader) in enumerate(found):
        content: dict[str, Any] = {"content": said.text or (None if said.calls else "")}
        calls = {"tool_calls": [_called(made) for made in said.calls]} if said.calls else {}
        message = {
            "role": "assistant",
            **content,
            **_thought(said.thought.strip()),
            **calls,
            "refusal": None,
            "annotations": [],
        }
        likely = chat_logprobs(served.tokenizer, answer.tokens, answer.chosen) if asked.logprobs else None
        reason = _reason(answer.finish, reader.called)
        choices.append({"index": index, "message": message, "finish_reason": reason, "logprobs": likely})
    return {
        **_head(served, "chat.completion"),
        "choices": choices,
        "usage": _usage([one[0] for one in found], [one[2] for one in found]),
    }


async def stream(served: Served, asked: Chat, plan: Plan) -> Events:
    """Yield events until all choices have ended."""
    head, options = _head(served, "chat.completion.chunk"), asked.stream_options
    counted: dict[str, Any] = {"usage": None} if options is not None and options.include_usage else {}
    found = [Answer(len(request.prompt)) for request in plan.requests]
    readers = [Reader(plan) for _ in plan.requests]

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, likely: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": likely}
        return event({**head, "choices": [choice], **counted})

    for index in range(len(plan.requests)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, piece in merged(served, plan.requests):
        found[index].add(piece)
        before = readers[index].called
        said = readers[index].push(piece)
        likely = None
        if piece.chosen is not None and piece.token is not None:
            likely = chat_logprobs(served.tokenizer, [piece.token], [piece.chosen])
        if said.thought:
            yield chunk(index, _thought(said.thought))
        if said.text or likely:
            yield chunk(index, {"content": said.text}, likely=likely)
        for number, made in enumerate(said.calls, before):
            yield chunk(index, {"tool_calls": [{"index": number, **_called(made)}]})
        if piece.finish:
            yield chunk(index, {}, _reason(piece.finish, readers[index].called))
    if counted:
        yield event({**head, "choices": [], "usage": _usage(found, readers)})
    yield DONE
