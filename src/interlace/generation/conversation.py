"""A conversation with a model: turns are written by its chat template, and text that it has read is not read again."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from interlace.base.errors import ConfigError
from interlace.data.chat import ChatTemplate, Thought
from interlace.data.tokenizer import Tokenizer
from interlace.generation.batch import pieces
from interlace.generation.budget import Budget
from interlace.generation.prompts import check_count, check_fits, check_ids, fresh_seed, seeded
from interlace.generation.request import Request
from interlace.generation.sampling import Sampling
from interlace.generation.scheduler import Scheduler
from interlace.model.model import HybridLM

KEPT_BYTES = 1 << 30  # of states that a conversation goes on from


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
        self._generator = seeded(fresh_seed(seed))
        self.begin(system)

    def begin(self, system: str = "") -> None:
        """Forget all turns."""
        self.messages = [{"role": "system", "content": system}] if system else []
        self._scheduler = Scheduler(self.model, Budget.unlimited(1, KEPT_BYTES))

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
        reader, made = Thought(prompt.rstrip().endswith(Thought.BEGIN)), []
        self.made_tokens = 0
        for piece in self.tokenizer.stream(self._tokens(ids)):
            made.append(reader.push(piece))
            yield piece
        answer, thought = map("".join, zip(*made, reader.end(), strict=True))
        turn = {"role": "assistant", "content": answer}
        self.messages = [*asked, {**turn, "reasoning_content": thought} if thought else turn]

    def _tokens(self, ids: list[int]) -> Iterator[int]:
        seed = int(torch.randint(1 << 62, (), generator=self._generator))
        request = Request(
            tuple(ids), self.max_tokens, self.sampling, seed=seed, ends=tuple(sorted(self.ends)), text=False
        )
        ticket = self._scheduler.submit(request)
        try:
            for piece in pieces(self._scheduler, ticket.total):
                if piece.token is not None:
                    self.made_tokens += 1
                    yield piece.token
        finally:
            ticket.cancelled = True
            if not self._scheduler.idle:  # an answer that is broken off leaves nothing half read
                self._scheduler.step()

    def close(self) -> None:
        """End the process that renders."""
        self.chat.close()
