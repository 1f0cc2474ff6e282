"""A conversation with a model: turns are written by its chat template, and what it has read is not read again."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from interlace.base.errors import ConfigError, PromptTooLong
from interlace.data.chat import ChatTemplate
from interlace.data.tokenizer import Tokenizer
from interlace.generate.engine import PREFILL
from interlace.generate.replay import Decoder
from interlace.generate.sampling import Sampling
from interlace.model.model import HybridLM
from interlace.model.state import ModelState


def end_tokens(tokenizer: Tokenizer, chat: ChatTemplate) -> tuple[int, ...]:
    """The token that a chat template ends an answer with; none where there is no such token."""
    ids = tokenizer.encode(chat.end_of_turn())
    return tuple(ids) if len(ids) == 1 else ()


class Conversation:
    """Turns so far, and the state of the model after what it has read.

    Attributes:
        messages: the turns.
    """

    def __init__(self, model: HybridLM, sampling: Sampling, max_tokens: int, system: str = "", seed: int | None = None):
        """max_tokens: for one answer.

        Raises:
            ConfigError: the model has no tokenizer, or its chat template fails.
        """
        if model.tokenizer is None:
            raise ConfigError("model: has no tokenizer, so that it cannot be talked to")
        if max_tokens < 1:
            raise ConfigError(f"max_tokens: must be at least 1, got {max_tokens}")
        self.model, self.tokenizer, self.sampling, self.max_tokens = model, model.tokenizer, sampling, max_tokens
        self.chat = model.tokenizer.chat()
        self.ends = {*model.config.tokens.eos, *end_tokens(model.tokenizer, self.chat)}
        self._generator = torch.Generator()
        self._generator.seed() if seed is None else self._generator.manual_seed(seed)
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
        ids = self.tokenizer.encode(self.chat.render(asked, True))
        limit = self.model.config.max_positions
        if limit is not None and len(ids) + self.max_tokens > limit:
            raise PromptTooLong(
                f"conversation: {len(ids)} tokens and max_tokens = {self.max_tokens} pass the model's limit of "
                f"{limit}; begin a new one"
            )
        made: list[str] = []
        for piece in self.tokenizer.stream(self._tokens(ids)):
            made.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(made)}]

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
            yield token
            logits = decoder.step(torch.tensor([token], device=self.model.device))
            read.append(token)
        self._read, self._state = read, decoder.state

    def close(self) -> None:
        """End the process that renders."""
        self.chat.close()
