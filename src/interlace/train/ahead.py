"""Batches on their device: the next one is made and copied while the device still works on this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interlace.data.batches import Batch, few


class Ahead:
    """Hands out the batch of each step, on a GPU copied there ahead; on other devices as it is."""

    def __init__(self, batch: Callable[[int], Batch], device: torch.device, early: bool | None = None):
        """Begin with nothing copied.

        Args:
            batch: of a step; a function of the step alone.
            device: where the model is.
            early: whether `prepare` does anything; None for on a GPU alone.
        """
        self._batch, self._device = batch, device
        self._early = device.type == "cuda" if early is None else early
        self._side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[int, Batch, Any] | None = None

    def prepare(self, step: int) -> None:
        """Make the batch of a step, and begin to copy it, after the step before was enqueued."""
        if self._early:
            self._next = (step, *self._sent(self._batch(step)))

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step, in time for what is enqueued next."""
        if not self._early:
            return self._batch(step)
        if self._next is None or self._next[0] != step:
            self.prepare(step)
        assert self._next is not None
        (_, batch, copied), self._next = self._next, None
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for x in (batch.tokens, batch.targets):
                if x.device.type == "cuda":
                    x.record_stream(stream)  # made by the side stream, which must not reuse its memory too soon
        return batch

    def _sent(self, batch: Batch) -> tuple[Batch, Any]:
        """Return the batch with its tensors on the device, and an event for when they have arrived.

        Targets stay on the CPU where they are weighted or few: the objective then chooses rows by them.
        """
        if self._side is None:
            return batch, None
        stays = batch.weights is not None or few(batch.targets)
        with torch.cuda.stream(self._side):
            tokens, targets = self._copy(batch.tokens), batch.targets if stays else self._copy(batch.targets)
        return replace(batch, tokens=tokens, targets=targets), self._side.record_event()

    def _copy(self, x: Tensor) -> Tensor:
        return x.pin_memory().to(self._device, non_blocking=True)
