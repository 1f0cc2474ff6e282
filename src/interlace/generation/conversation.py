"""A conversation with a model: turns are written by its chat template, and text that it has read is not read again."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from interlace.base.errors import ConfigError
from interlace.data.chat import ChatTemplate, split_thought
from interlace.data.tokenizer import Tokenizer
from interlace.generation.decode import Continuation, decode
from interlace.generation.prompts import check_count, check_fits, check_ids, seeded
from interlace.generation.sampling import Sampling
from interlace.model.model import HybridLM
from interlace.model.state import ModelState


def end_tokens(tokenizer: Tokenizer, chat: ChatTemplate) -> tuple[int, ...]:
    """Return the token that a chat template ends an answer with, in a tuple; an empty one if there is no such token."""
    return tokenizer.end_ids(chat.end_of_turn())


class Conversation:
    """The turns so far, and the state of the model after what it has read.

    Attributes:
        messages: the turns; a thought that an answer began with stands apart, as its reasoning_content.
        made_tokens: tokens of the last answer.
    """

    made_tokens = 0

    def __init__(self, model: HybridLM, sampling: Sampling, max_tokens: int, system: str = "", seed: int | None = None):
        """max_tokens: the most tokens of one answer.

        Raises:
            ConfigError: the model has no tokenizer, or its chat template fails.
        """
        if model.tokenizer is None:
            raise ConfigError("model: has no tokenizer, so that it cannot be talked to")
        check_count("max_tokens", max_tokens)
        self.model, self.tokenizer, self.sampling, self.max_tokens = model, model.tokenizer, sampling, max_tokens
        self.chat = model.tokenizer.chat()
        try:
            self.ends = {*model.config.tokens.eos, *end_tokens(model.tokenizer, self.chat)}
        except BaseException:
            self.chat.close()
            raise
        self._generator = seeded(seed)
        self.begin(system)

    def begin(self, system: str = "") -> None:
        """Forget all turns."""
        self.messages = [{"role": "system", "content": system}] if system else []
        self._read: list[int] = []
        self._state: ModelState | None = None

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to a turn in pieces as they come; both turns are stored when it has ended.

        Raises:
            PromptTooLong: the conversation and an answer do not fit the model's limit.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self.chat.render(asked, True)
        ids = self.tokenizer.encode(prompt)
        check_ids(self.model, ids)
        check_fits(self.model, len(ids), self.max_tokens, "conversation", "begin a new one")
        made: list[str] = []
        self.made_tokens = 0
        for piece in self.tokenizer.stream(self._tokens(ids)):
            made.append(piece)
            yield piece
        answer, thought = split_thought("".join(made), prompt.rstrip().endswith("<think>"))
        turn = {"role": "assistant", "content": answer}
        self.messages = [*asked, {**turn, "reasoning_content": thought} if thought else turn]

    def _tokens(self, ids: list[int]) -> Iterator[int]:
        state, done = self._state, len(self._read)
        if state is None or ids[:done] != self._read or done >= len(ids):  # the template wrote the past otherwise
            state, done = None, 0
        self._state = None  # an answer that is broken off leaves nothing half read
        rest = torch.tensor(ids[done:], device=self.model.device)
        row = Continuation(rest, self.max_tokens, self.sampling, self._generator)
        kept: list[ModelState] = []
        for _, token in decode(self.model, [row], sorted(self.ends), state, kept.append):
            self.made_tokens += 1
            yield token
        self._read, self._state = [*ids, *row.made], kept[0]

    def close(self) -> None:
        """End the process that renders."""
        self.chat.close()
