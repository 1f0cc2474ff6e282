"""A model behind the server: its engine, its chat template, and the requests that are made of what clients ask."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from interlace.base.errors import ConfigError, InterlaceError
from interlace.data.calls import Form, form_of
from interlace.data.chat import ChatTemplate
from interlace.data.tokenizer import Tokenizer
from interlace.generation.conversation import end_tokens
from interlace.generation.engine import Engine
from interlace.generation.prompts import check_ids
from interlace.generation.request import Request
from interlace.generation.structure import Structure
from interlace.model.model import HybridLM
from interlace.model.sizes import all_attention, sizes
from interlace.serve.errors import ApiError, of_request
from interlace.serve.metrics import Times
from interlace.serve.schema import Drawing


class Served:
    """One model by its name.

    Attributes:
        name: what requests call it.
        engine: answers them.
        tokenizer: of the model, or None.
        no_chat: why there is no chat; "" if there is.
        form: how the template writes calls of tools, or None.
        specials: ids of special tokens, by their texts.
        shown: special tokens that stand for thoughts and calls, which answers to conversations show.
        first, whole: how long clients waited for the first token, and for the last.
        created: when it was loaded, in seconds of the epoch.
    """

    def __init__(self, name: str, model: HybridLM, memory: str, rows: int, most_tokens: int | None):
        """Start the engine, and the process that renders the chat template.

        most_tokens: the most of an answer, whatever is asked; None for the model's limit.
        """
        self.name, self.most_tokens = name, most_tokens
        self.engine = Engine(model, memory, rows=rows)
        self.tokenizer: Tokenizer | None = model.tokenizer
        self.created = int(time.time())
        self._transformer = all_attention(model.config)
        self.first, self.whole = Times(), Times()
        self.chat: ChatTemplate | None = None
        self.ends: tuple[int, ...] = ()
        self.form: Form | None = None
        self.shown: tuple[str, ...] = ()
        self.specials: dict[str, int] = {}
        self._variables: set[str] = set()
        self.no_chat = self._begin_chat()

    def _begin_chat(self) -> str:
        if self.tokenizer is None:
            return "the model has no tokenizer"
        if self.tokenizer.chat_template is None:
            return "the model has no chat template; ask /v1/completions"
        self.chat = self.tokenizer.chat()
        try:
            self.ends = end_tokens(self.tokenizer, self.chat)
            self._variables = self.chat.names()
        except ConfigError as error:
            return str(error)
        self.form = form_of(self.chat)
        marks = {"<think>", "</think>", *([] if self.form is None else self.form.marks)}
        self.specials = {name: number for number, name in self.tokenizer.special_ids().items()}
        self.shown = tuple(name for name in self.specials if name in marks)
        return ""

    @property
    def limit(self) -> int:
        """How many tokens a prompt and its answer may have together."""
        return self.engine.model.config.max_positions or 1 << 31

    def memory(self, tokens: int) -> dict[str, int]:
        """Return the bytes of a sequence's state and caches, and those of a transformer of the same width and depth."""
        element = self.engine.model.dtype.itemsize
        own, other = (sizes(config, (tokens,), element) for config in (self.engine.model.config, self._transformer))
        return {
            "tokens": tokens,
            "state_bytes": own.state_bytes[tokens] + own.cache_bytes[tokens],
            "transformer_bytes": other.cache_bytes[tokens],
        }

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        field: str,
    ) -> tuple[str, list[int]]:
        """Return the text that a conversation's answer follows, and its ids.

        Args:
            tools: what may be called.
            variables: what else the template is told.
            field: what holds the conversation, for messages.

        Raises:
            ApiError: there is no template, or it refuses these turns, or does not know a variable.
        """
        if self.no_chat or self.chat is None or self.tokenizer is None:
            raise ApiError(400, f"{field}: {self.no_chat}", field, "no_chat_template")
        if strange := next((name for name in variables if name not in self._variables), None):
            raise ApiError(
                400,
                f"{strange}: the model's chat template does not read it; leave it out",
                strange,
                "unsupported_parameter",
            )
        try:
            text = await asyncio.to_thread(self.chat.render, messages, True, tools or None, variables)
        except ConfigError as error:
            raise ApiError(400, f"{field}: {error}", field, "invalid_value") from None
        try:
            ids = await asyncio.to_thread(self.tokenizer.encode, text)
            check_ids(self.engine.model, ids)
        except InterlaceError as error:
            raise ApiError(400, f"{field}: {error}", field, "invalid_value") from None
        return text, ids

    def requests(
        self,
        asked: Drawing,
        ids: list[int] | str,
        most: int | None,
        owner: str,
        *,
        field: str,
        ends: tuple[int, ...] = (),
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        structure: Structure | None = None,
        shown: tuple[str, ...] = (),
    ) -> list[Request]:
        """Return a request for each choice.

        Args:
            most: tokens that were asked for; None for as many as fit.
            field: what holds the prompt, for messages.
            structure: the form of each answer.
            shown: special tokens that are part of the text.

        Raises:
            ApiError: they cannot be served.
        """
        bias: dict[int, float] = {}
        for token, value in (asked.logit_bias or {}).items():
            if not token.isascii() or not token.isdigit() or len(token) > 10:
                raise ApiError(
                    400, f"logit_bias: must name token ids, got {token!r:.40}", "logit_bias", "invalid_value"
                )
            bias[int(token)] = value
        try:
            one = self.engine.request(
                ids,
                max_tokens=1,
                temperature=asked.temperature,
                top_p=asked.top_p or None,
                top_k=asked.top_k,
                min_p=asked.min_p,
                repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
                presence_penalty=asked.presence_penalty or 0.0,
                frequency_penalty=asked.frequency_penalty or 0.0,
                logit_bias=bias,
                seed=None if asked.seed is None else asked.seed % (1 << 64),
                stop=asked.stop,
                logprobs=logprobs,
                structure=structure,
                owner=owner,
            )
        except InterlaceError as error:
            raise of_request(error) from None
        space = self.limit - len(one.prompt)
        if space < 1:
            raise ApiError(
                400,
                f"{field}: has {len(one.prompt)} tokens, and the model's limit is {self.limit}; shorten it",
                field,
                "context_length_exceeded",
            )
        if most is not None and self.most_tokens is not None and most > self.most_tokens:
            raise ApiError(
                400,
                f"max_tokens: must be at most {self.most_tokens} on this server, got {most}",
                "max_tokens",
                "invalid_value",
            )
        if most is not None and most > space:
            raise ApiError(
                400,
                f"max_tokens: {field} has {len(one.prompt)} tokens and the model's limit is {self.limit}, so that at "
                f"most {space} tokens can be made, got {most}",
                "max_tokens",
                "context_length_exceeded",
            )
        count = min(space, self.most_tokens or DEFAULT_TOKENS) if most is None else most
        one = replace(
            one,
            max_tokens=max(1, count),
            ends=ends,
            prompt_logprobs=prompt_logprobs,
            afresh=bool(ends),
            shown=shown,
        )
        return [replace(one, seed=_seed(one.seed, choice)) for choice in range(asked.n or 1)]

    def close(self) -> None:
        """End the engine and the process that renders."""
        self.engine.close()
        if self.chat is not None:
            self.chat.close()


DEFAULT_TOKENS = 1024  # of an answer, where neither request nor server says how many


def _seed(seed: int, choice: int) -> int:
    """Return the seed of one of several choices; the first has the seed that was asked for."""
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {choice}".encode(), digest_size=8).digest(), "little")
