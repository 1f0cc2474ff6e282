"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from interlace.base.errors import ConfigError
from interlace.generation.request import Answer, Chosen, Request
from interlace.serve.answers import DONE, Events, completion_logprobs, event, finish, usage
from interlace.serve.dialogue import structure_without_tools
from interlace.serve.errors import ApiError, of_request
from interlace.serve.flow import answer_all, merged
from interlace.serve.schema import MOST_PROMPTS, Completion
from interlace.serve.served import Served


def prompts_of(served: Served, prompt: Any) -> list[list[int]]:
    """Return the ids of each prompt: of a text, of a list of texts, of ids, or of lists of ids.

    Raises:
        ApiError: it is none of these.
    """
    several = prompt if isinstance(prompt, list) else [prompt]
    if several and all(isinstance(one, int) and not isinstance(one, bool) for one in several):
        several = [several]
    if not several or len(several) > MOST_PROMPTS:
        raise ApiError(
            400, f"prompt: must hold 1 to {MOST_PROMPTS} prompts, got {len(several)}", "prompt", "invalid_value"
        )
    found = []
    for one in several:
        if isinstance(one, str):
            if served.tokenizer is None:
                raise ApiError(400, "prompt: the model has no tokenizer; give token ids", "prompt", "invalid_value")
            ids = served.tokenizer.encode_text(one)
            ids = ids or ([] if served.tokenizer.eos is None else [served.tokenizer.eos])
        elif isinstance(one, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in one):
            ids = one
        else:
            raise ApiError(400, f"prompt: must be text or token ids, got {one!r:.40}", "prompt", "invalid_type")
        size = served.engine.model.config.vocabulary
        if wrong := [i for i in ids if not 0 <= i < size]:
            raise ApiError(400, f"prompt: ids must lie in [0, {size}), got {wrong[0]}", "prompt", "invalid_value")
        if not ids:
            raise ApiError(400, "prompt: is empty; it must hold at least one token", "prompt", "invalid_value")
        found.append(ids)
    return found


def requests_of(served: Served, asked: Completion, owner: str) -> list[Request]:
    """Return a request for each prompt and choice.

    Raises:
        ApiError: they cannot be served.
    """
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise ApiError(
            400, "best_of: must be n; draw several and choose among them", "best_of", "unsupported_parameter"
        )
    most = 16 if asked.max_tokens is None else asked.max_tokens
    if most == 0 and not asked.echo:
        raise ApiError(400, "max_tokens: 0 makes nothing; give at least 1, or echo", "max_tokens", "invalid_value")
    try:
        structure = structure_without_tools(asked.response_format, asked.structured_outputs)
    except ConfigError as error:
        raise of_request(error) from None
    found = []
    for ids in prompts_of(served, asked.prompt):
        found += served.requests(
            asked,
            ids,
            most if most or not asked.echo else 1,
            owner,
            field="prompt",
            logprobs=asked.logprobs,
            prompt_logprobs=asked.logprobs if asked.echo else None,
            structure=structure,
        )
    return found


def _choice(served: Served, asked: Completion, index: int, request: Request, answer: Answer) -> dict[str, Any]:
    """Return one whole choice."""
    tokens, chosen = list[int](answer.tokens), list[Chosen | None](answer.chosen)
    text, reason = answer.text, finish(answer.finish)
    before = _before(served, request) if asked.echo or asked.logprobs is not None else ""
    if asked.max_tokens == 0:
        tokens, chosen, text, reason = [], [], "", "length"
    if asked.echo:
        tokens, chosen, text = [*request.prompt, *tokens], [None, *answer.prompt, *chosen], before + text
    choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
    if asked.logprobs is not None:
        offset = 0 if asked.echo else len(before)
        choice["logprobs"] = completion_logprobs(served.tokenizer, tokens, chosen, offset)
    return choice


async def whole(served: Served, asked: Completion, requests: list[Request]) -> dict[str, Any]:
    """Return a whole answer."""
    found = await answer_all(served, requests)
    pairs = zip(requests, found, strict=True)
    return {
        **_head(served),
        "choices": [_choice(served, asked, i, request, answer) for i, (request, answer) in enumerate(pairs)],
        "usage": _usage(asked, found),
    }


def _usage(asked: Completion, found: list[Answer]) -> dict[str, Any]:
    """Return how many tokens were read and made; a prompt counts once, however many choices it has."""
    counts = [usage(found[i : i + (asked.n or 1)]) for i in range(0, len(found), asked.n or 1)]
    total = {key: sum(one[key] for one in counts) for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in counts)
    if asked.max_tokens == 0:
        total |= {"completion_tokens": 0, "total_tokens": total["prompt_tokens"]}
    return {**total, "prompt_tokens_details": {"cached_tokens": cached}}


def _head(served: Served) -> dict[str, Any]:
    name = f"cmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": "text_completion", "created": int(time.time()), "model": served.name}


async def stream(served: Served, asked: Completion, requests: list[Request]) -> Events:
    """Yield events until all choices have ended."""
    head, options = _head(served), asked.stream_options
    counted: dict[str, Any] = {"usage": None} if options is not None and options.include_usage else {}
    found = [Answer(len(request.prompt)) for request in requests]
    befores = [await asyncio.to_thread(_before, served, request) for request in requests]
    offsets = [0 if asked.echo else len(before) for before in befores]
    begun = [not asked.echo for _ in requests]

    def chunk(index: int, text: str, finished: str | None, tokens: list[int], chosen: list[Chosen | None]) -> bytes:
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": finished, "logprobs": None}
        if chosen:
            choice["logprobs"] = completion_logprobs(served.tokenizer, tokens, chosen, offsets[index])
        offsets[index] += len(text)
        return event({**head, "choices": [choice], **counted})

    async for index, piece in merged(served, requests):
        found[index].add(piece)
        if not begun[index]:
            begun[index] = True
            read: list[Chosen | None] = [None, *piece.prompt] if asked.logprobs is not None else []
            yield chunk(index, befores[index], None, list(requests[index].prompt), read)
        if asked.max_tokens == 0:  # the prompt alone was asked for
            if piece.finish:
                yield chunk(index, "", "length", [], [])
            continue
        made = [] if piece.chosen is None or piece.token is None else [piece.token]
        if piece.text or piece.finish or made:
            yield chunk(index, piece.text, finish(piece.finish), made, [piece.chosen] if made else [])
    if counted:
        yield event({**head, "choices": [], "usage": _usage(asked, found)})
    yield DONE


def _before(served: Served, request: Request) -> str:
    """Return the text of a prompt."""
    return "" if served.tokenizer is None else served.tokenizer.decode(list(request.prompt))
