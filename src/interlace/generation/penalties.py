"""Penalties on what a text holds already, and biases of single tokens: both change logits before a token is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interlace.base.errors import ConfigError


@dataclass(frozen=True)
class Penalties:
    """How what was read and made changes the next token.

    Attributes:
        repetition: divides the positive logits of tokens in the prompt or the answer, and multiplies negative ones; 1
            for none (arXiv 1909.05858).
        presence: subtracted from the logits of tokens in the answer.
        frequency: subtracted as often as the token stands in the answer (both as OpenAI's API defines them).
        bias: (token, what is added to its logit), in order of tokens.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (("repetition", 0.01, 100.0), ("presence", -2.0, 2.0), ("frequency", -2.0, 2.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{name}_penalty: must be a number from {low:g} to {high:g}, got {value!r}")
        for token, value in self.bias:
            if not isinstance(value, int | float) or isinstance(value, bool) or not -100 <= value <= 100:
                raise ConfigError(f"logit_bias: must be from -100 to 100, got {value!r} for token {token}")
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise ConfigError(f"logit_bias: must name token ids, got {token!r}")

    @property
    def needed(self) -> bool:
        """Whether anything is changed."""
        return self.repetition != 1 or self.presence != 0 or self.frequency != 0 or bool(self.bias)


class Penalised:
    """Changes the logits of one sequence, as its tokens come."""

    def __init__(self, penalties: Penalties, prompt: Sequence[int], device: torch.device):
        """prompt: what was read."""
        self.penalties, self.device, self._made = penalties, device, Counter[int]()
        self._prompt = set(prompt) if penalties.repetition != 1 else set[int]()
        self._biased = [torch.tensor(x, device=device) for x in zip(*penalties.bias, strict=True)]

    def push(self, token: int) -> None:
        """Count a token that was made."""
        self._made[token] += 1

    def __call__(self, logits: Tensor) -> Tensor:
        """Return logits [vocabulary] in float32, changed; those that were given stay."""
        p, logits = self.penalties, logits.to(torch.float32, copy=True)
        if p.repetition != 1 and (seen := sorted(self._prompt | self._made.keys())):
            index = torch.tensor(seen, device=self.device)
            some = logits[index]
            logits[index] = torch.where(some > 0, some / p.repetition, some * p.repetition)
        if (p.presence or p.frequency) and self._made:
            index = torch.tensor(list(self._made), device=self.device)
            counts = torch.tensor(list(self._made.values()), dtype=torch.float32, device=self.device)
            logits[index] -= p.presence + p.frequency * counts
        if self._biased:
            tokens, values = self._biased
            logits[tokens] += values.to(logits.dtype)
        return logits
