"""Batches on their device, in parts: the next one is made and copied while the device still works on this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interlace.data.batches import Batch, few


class Ahead:
    """Hands out the batch of each step, on a GPU copied there ahead; on other devices as it is."""

    def __init__(self, parts: Callable[[int], Sequence[Batch]], device: torch.device, early: bool | None = None):
        """Begin with nothing copied.

        Args:
            parts: of a step's batch; a function of the step alone.
            device: where the model is.
            early: whether `prepare` does anything; None for on a GPU alone.
        """
        self._parts, self._device = parts, device
        self._early = device.type == "cuda" if early is None else early
        self._side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[int, list[Batch], Any] | None = None

    def prepare(self, step: int) -> None:
        """Make the batch of a step, and begin to copy it, after the step before was enqueued."""
        if self._early:
            self._next = (step, *self._sent(self._parts(step)))

    def __call__(self, step: int) -> Sequence[Batch]:
        """Return the parts of a step's batch, in time for what is enqueued next."""
        if not self._early:
            return self._parts(step)
        if self._next is None or self._next[0] != step:
            self.prepare(step)
        assert self._next is not None
        (_, parts, copied), self._next = self._next, None
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for x in (x for part in parts for x in (part.tokens, part.targets)):
                if x.device.type == "cuda":
                    x.record_stream(stream)  # made by the side stream, which must not reuse its memory too soon
        return parts

    def _sent(self, parts: Sequence[Batch]) -> tuple[list[Batch], Any]:
        """Return the parts with their tensors on the device, and an event for when they have arrived.

        Targets stay on the CPU where they are weighted or few: the objective then chooses rows by them.
        """
        if self._side is None:
            return list(parts), None
        sent = []
        with torch.cuda.stream(self._side):
            for part in parts:
                stays = part.weights is not None or few(part.targets)
                tokens, targets = self._copy(part.tokens), part.targets if stays else self._copy(part.targets)
                sent.append(replace(part, tokens=tokens, targets=targets))
        return sent, self._side.record_event()

    def _copy(self, x: Tensor) -> Tensor:
        return x.pin_memory().to(self._device, non_blocking=True)
