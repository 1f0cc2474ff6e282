"""A moving average of a model's weights while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from interlace.layers.low_rank import kept_parameters


class Average:
    """The average of each weight over the last steps, a later one counting more.

    Attributes:
        keep: how much of itself it keeps at a step; less in the first ones, so that the start is soon forgotten.
        tensors: the averages, by parameter; of a model with adapters, of the adapters alone.
    """

    def __init__(self, model: nn.Module, keep: float, local: Callable[[Tensor], Tensor] = lambda x: x):
        """Begin with the weights as they are. local: returns what lies here of a parameter."""
        self.keep = keep
        self._weights = {name: local(p.detach()) for name, p in kept_parameters(model).items()}
        self.tensors = {name: p.clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int, good: Tensor | None = None) -> None:
        """Take in the weights after a step counted from 0. good: on the device, 0 where the step changed nothing."""
        share = 1 - min(self.keep, (1 + step) / (10 + step))
        means, weights = list(self.tensors.values()), list(self._weights.values())
        if good is None:
            torch._foreach_lerp_(means, weights, share)
            return
        for mean, weight in zip(means, weights, strict=True):
            mean.lerp_(weight, good * share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model its average inside, and its own weights back afterwards."""
        own = {name: p.clone() for name, p in self._weights.items()}
        try:
            for name, p in self._weights.items():
                p.copy_(self.tensors[name])
            yield
        finally:
            for name, p in self._weights.items():
                p.copy_(own[name])
