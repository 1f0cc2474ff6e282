"""Draw the next token from its logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from interlace.base.errors import ConfigError, Failure
from interlace.ops.core.tables import on_device

DAMAGED = "logits: hold NaN or infinity, so that no token can be drawn; the weights are damaged"
WHOLE = 1 << 52  # parts that a row's probability is divided in
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
        if not bool(torch.isfinite(logits.float().amax(-1)).all()):
            raise Failure(DAMAGED)
        return self._filtered(logits)

    def _filtered(self, logits: Tensor) -> Tensor:
        """Return the probabilities; nothing is looked at on the host."""
        wide = logits.float()
        top = wide.amax(-1, keepdim=True)
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

    def pick(self, logits: Tensor, uniform: Tensor | None) -> Tensor:
        """Return the token of each row of logits [rows, vocabulary], int64 [rows]; nothing is looked at on the host.

        Args:
            uniform: float64 [rows], from 0 below 1: the token is the one in whose part of [0, 1) it lies. None for
                temperature 0, which takes the likeliest.

        Returns:
            -1 for a row whose logits hold NaN or infinity.
        """
        finite = torch.isfinite(logits.amax(-1))
        if self.temperature == 0:
            return logits.argmax(-1).where(finite, -1)
        assert uniform is not None
        # Sums of whole numbers are exact: a row's token depends on no row beside it, and on no order of summing.
        parts = (self._filtered(logits).double() * WHOLE).long().cumsum(-1)
        total = parts[:, -1:]
        target = torch.minimum((uniform[:, None] * total.double()).long(), total - 1)
        token = torch.searchsorted(parts, target, right=True).squeeze(-1)
        return token.where(finite, -1)


class Draws:
    """Draws the next token of each of N rows; on a GPU all rows at once, with one copy to the host.

    A row's token depends on its own logits, sampling and generator, on each device in its own way.
    """

    def __init__(self, samplings: Sequence[Sampling], generators: Sequence[torch.Generator], device: torch.device):
        """device: where the logits lie. Each row consumes random numbers of its own generator only."""
        self._rows = list(zip(samplings, generators, strict=True))
        self._together = device.type == "cuda"  # others may have no float64
        self._groups: list[tuple[Sampling, list[int], Tensor]] = []
        if self._together:
            for sampling in dict.fromkeys(samplings):
                places = [place for place, other in enumerate(samplings) if other == sampling]
                self._groups.append((sampling, places, on_device(torch.tensor(places), device)))

    def __call__(self, logits: Tensor) -> list[int]:
        """Draw from logits [N, vocabulary]; -1 for a row whose logits hold NaN or infinity."""
        return (
            self.draw_together(logits).tolist() if self._together else list(map(self._draw, range(len(logits)), logits))
        )

    def _draw(self, place: int, logits: Tensor) -> int:
        sampling, generator = self._rows[place]
        return int(sampling.draw(logits, generator)) if bool(torch.isfinite(logits.amax(-1))) else -1

    def draw_together(self, logits: Tensor) -> Tensor:
        """Draw all rows on the device of the logits, without waiting for it: int64 [N]."""
        found = []
        for sampling, places, index in self._groups:
            uniform = None
            if sampling.temperature > 0:
                numbers = [self._uniform(place) for place in places]
                uniform = on_device(torch.tensor(numbers, dtype=torch.float64), logits.device)
            found.append(sampling.pick(logits if len(self._groups) == 1 else logits[index], uniform))
        if len(found) == 1:
            return found[0]
        order = torch.cat([index for _, _, index in self._groups])
        return torch.empty_like(order).scatter_(0, order, torch.cat(found))

    def _uniform(self, place: int) -> float:
        return float(torch.rand((), generator=self._rows[place][1], dtype=torch.float64))
