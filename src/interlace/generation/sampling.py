"""Draw the next token from its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from interlace.base.errors import ConfigError, Failure

COLDEST, HOTTEST = 1e-30, 1e30  # temperatures beyond draw the same tokens, and float32 would make them zero, infinite


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Attributes:
        temperature: 0 for the likeliest token; higher is more random.
        top_k: only the k likeliest tokens; None for all.
        top_p: only the likeliest tokens that together reach this probability.
        min_p: only tokens at least this likely relative to the likeliest.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise ConfigError(f"{name}: must be a finite number, got {value!r}")
        if self.temperature < 0:
            raise ConfigError(f"temperature: must be at least 0, got {self.temperature}")
        if self.top_k is not None and (not isinstance(self.top_k, Integral) or isinstance(self.top_k, bool)):
            raise ConfigError(f"top_k: must be a whole number, got {self.top_k!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k: must be at least 1, got {self.top_k}; leave it out to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p: must lie in [0, 1], got {self.min_p}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """float32 [..., vocabulary] after temperature, top-k, top-p and min-p, in this order."""
        wide = logits.float()
        if not bool(torch.isfinite(top := wide.amax(-1, keepdim=True)).all()):
            raise Failure("logits: hold NaN or infinity, so that no token can be drawn; the weights are damaged")
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        p = torch.softmax((wide - top) / min(max(self.temperature, COLDEST), HOTTEST), dim=-1)
        if self.top_k is not None and self.top_k < p.shape[-1]:
            p = p.where(p >= p.topk(self.top_k).values[..., -1:], 0)
        if self.top_p < 1:
            ordered, index = (p / p.sum(-1, keepdim=True)).sort(descending=True)
            keep = ordered.cumsum(-1) - ordered < max(self.top_p, 1e-30)  # which float32 would make zero
            p = p.where(torch.zeros_like(keep).scatter(-1, index, keep), 0)
        if self.min_p > 0:
            p = p.where(p >= self.min_p * p.amax(-1, keepdim=True), 0)
        return p / p.sum(-1, keepdim=True)

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a token for each row of logits, int64 [...]."""
        if self.temperature == 0 and bool(torch.isfinite(logits.amax(-1)).all()):
            return logits.argmax(-1)
        return torch.multinomial(self.probabilities(logits).cpu(), 1, generator=generator).squeeze(-1)
