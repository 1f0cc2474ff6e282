"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from typing import Any

from interlace.data.chat import split_thought
from interlace.generation.request import Answer, Request
from interlace.serve.answers import DONE, Events, Thought, chat_logprobs, event, finish, usage
from interlace.serve.errors import ApiError
from interlace.serve.flow import answer_all, merged
from interlace.serve.schema import Chat
from interlace.serve.served import Served


async def requests_of(served: Served, asked: Chat, owner: str) -> tuple[list[Request], bool]:
    """Return a request for each choice, and whether the prompt has opened a thought.

    Raises:
        ApiError: they cannot be served.
    """
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", "top_logprobs", "invalid_value")
    text, ids = await served.render([turn.plain() for turn in asked.messages])
    most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    likely = (asked.top_logprobs or 0) if asked.logprobs else None
    made = served.requests(asked, ids, most, owner, field="messages", ends=served.ends, logprobs=likely)
    return made, text.rstrip().endswith(Thought.BEGIN)


def _head(served: Served, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": served.name}


def _said(content: str, thought: str) -> dict[str, Any]:
    """Return a message's text and thought; clients read the thought under either name."""
    return {"content": content, **({"reasoning_content": thought, "reasoning": thought} if thought else {})}


async def whole(served: Served, asked: Chat, requests: list[Request], opened: bool) -> dict[str, Any]:
    """Return a whole answer."""
    found, choices = await answer_all(served.engine, requests), []
    for index, answer in enumerate(found):
        message = {"role": "assistant", **_said(*split_thought(answer.text, opened)), "refusal": None}
        likely = chat_logprobs(served.tokenizer, answer.tokens, answer.chosen) if asked.logprobs else None
        choices.append({"index": index, "message": message, "finish_reason": finish(answer.finish), "logprobs": likely})
    return {**_head(served, "chat.completion"), "choices": choices, "usage": usage(found)}


async def stream(served: Served, asked: Chat, requests: list[Request], opened: bool) -> Events:
    """Yield events until all choices have ended."""
    head, options = _head(served, "chat.completion.chunk"), asked.stream_options
    counted: dict[str, Any] = {"usage": None} if options is not None and options.include_usage else {}
    found = [Answer(len(request.prompt)) for request in requests]
    thoughts = [Thought(opened) for _ in requests]

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, likely: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": likely}
        return event({**head, "choices": [choice], **counted})

    for index in range(len(requests)):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, piece in merged(served.engine, requests):
        found[index].add(piece)
        answer, thought = thoughts[index].push(piece.text)
        if piece.finish:
            rest = thoughts[index].end()
            answer, thought = answer + rest[0], thought + rest[1]
        likely = None
        if piece.chosen is not None and piece.token is not None:
            likely = chat_logprobs(served.tokenizer, [piece.token], [piece.chosen])
        if thought:
            yield chunk(index, {"reasoning_content": thought, "reasoning": thought})
        if answer or likely:
            yield chunk(index, {"content": answer}, likely=likely)
        if piece.finish:
            yield chunk(index, {}, finish(piece.finish))
    if counted:
        yield event({**head, "choices": [], "usage": usage(found)})
    yield DONE
