"""A conversation with a model: turns are written by its chat template, and what it has read is not read again."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from interlace.base.errors import ConfigError, PromptTooLong
from interlace.data.chat import ChatTemplate, split_thought
from interlace.data.tokenizer import Tokenizer
from interlace.generation.capture import Decoder
from interlace.generation.sampling import Sampling
from interlace.generation.text import PREFILL, check_count, check_ids, memory_for, seeded
from interlace.model.model import HybridLM
from interlace.model.state import ModelState


def end_tokens(tokenizer: Tokenizer, chat: ChatTemplate) -> tuple[int, ...]:
    """The token that a chat template ends an answer with; none where there is no such token."""
    return tokenizer.end_ids(chat.end_of_turn())


class Conversation:
    """Turns so far, and the state of the model after what it has read.

    Attributes:
        messages: the turns; a thought that an answer began with stands apart, as its reasoning_content.
        made_tokens: of the last answer.
    """

    made_tokens = 0

    def __init__(self, model: HybridLM, sampling: Sampling, max_tokens: int, system: str = "", seed: int | None = None):
        """max_tokens: for one answer.

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
        """The answer to a turn, in pieces as they come; both turns are kept once it has ended.

        Raises:
            PromptTooLong: the conversation and an answer do not fit the model's limit.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self.chat.render(asked, True)
        ids = self.tokenizer.encode(prompt)
        check_ids(self.model, ids)
        limit = self.model.config.max_positions
        if limit is not None and len(ids) + self.max_tokens > limit:
            raise PromptTooLong(
                f"conversation: {len(ids)} tokens and max_tokens = {self.max_tokens} pass the model's limit of "
                f"{limit}; begin a new one"
            )
        made: list[str] = []
        self.made_tokens = 0
        with memory_for(len(ids) + self.max_tokens):
            for piece in self.tokenizer.stream(self._tokens(ids)):
                made.append(piece)
                yield piece
        answer, thought = split_thought("".join(made), prompt.rstrip().endswith("<think>"))
        turn = {"role": "assistant", "content": answer}
        self.messages = [*asked, {**turn, "reasoning_content": thought} if thought else turn]

    @torch.inference_mode()
    def _tokens(self, ids: list[int]) -> Iterator[int]:
        state, done = self._state, len(self._read)
        if state is None or ids[:done] != self._read or done >= len(ids):  # the template wrote the past otherwise
            state, done = self.model.empty_state(1, len(ids) + self.max_tokens), 0
        self._state = None  # an answer that is broken off leaves nothing half read
        rest = torch.tensor(ids[done:], device=self.model.device)
        for part in rest.split(PREFILL):
            logits, state = self.model(part, state=state, last_only=True)
        decoder, read = Decoder(self.model, state), list(ids)
        for _ in range(self.max_tokens):
            token = int(self.sampling.draw(logits[0], self._generator))
            if token in self.ends:
                break
            self.made_tokens += 1
            yield token
            logits = decoder.step(torch.tensor([token], device=self.model.device))
            read.append(token)
        self._read, self._state = read, decoder.state

    def close(self) -> None:
        """End the process that renders."""
        self.chat.close()
