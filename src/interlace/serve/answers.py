"""Answers in OpenAI's forms: whole ones, and chunks of a stream with the last one for usage."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from interlace.data.tokenizer import Tokenizer
from interlace.generation.request import Answer, Chosen

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def named_event(kind: str, data: dict[str, Any]) -> bytes:
    """Return a server-sent event that bears a name."""
    return f"event: {kind}\n".encode() + event(data)


def usage(found: Sequence[Answer], thought: int | None = None) -> dict[str, Any]:
    """Return how many tokens were read and made for all choices of a request; `thought` of them in thoughts."""
    prompt, made = found[0].prompt_tokens, sum(len(answer.tokens) for answer in found)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        **({} if thought is None else {"completion_tokens_details": {"reasoning_tokens": thought}}),
        "prompt_tokens_details": {"cached_tokens": found[0].reused_tokens},
    }


def finish(reason: str) -> str | None:
    """Return OpenAI's reason for an end."""
    return {"": None, "stop": "stop", "length": "length"}.get(reason, "stop")


def spelled(tokenizer: Tokenizer | None, token: int) -> str:
    """Return a token as text."""
    return f"token_id:{token}" if tokenizer is None else tokenizer.fast.decode([token], skip_special_tokens=False)


def chat_logprobs(tokenizer: Tokenizer | None, tokens: Sequence[int], chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Return log-probabilities as chat completions have them."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = spelled(tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = []
    for token, each in zip(tokens, chosen, strict=True):
        content.append({**one(token, each.logprob), "top_logprobs": [one(*pair) for pair in each.top]})
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer | None, tokens: Sequence[int], chosen: Sequence[Chosen | None], offset: int
) -> dict[str, Any]:
    """Return log-probabilities as completions have them; None for a token of which nothing is known.

    offset: characters before the first token.
    """
    texts = [spelled(tokenizer, token) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops: list[dict[str, float] | None] = []
    for token, each in zip(tokens, chosen, strict=True):
        if each is None:
            tops.append(None)
            continue
        top = {spelled(tokenizer, other): value for other, value in each.top}
        tops.append({**top, spelled(tokenizer, token): each.logprob} if each.top else {})
    return {
        "tokens": texts,
        "token_logprobs": [None if each is None else each.logprob for each in chosen],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


Events = AsyncGenerator[bytes, None]
