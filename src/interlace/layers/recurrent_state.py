"""What a recurrent mixer with a short convolution carries from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interlace.base.state import UsedOnce


@dataclass
class RecurrentState(UsedOnce):
    """What one layer carries for N sequences; used up by a step that changes it in place.

    Attributes:
        window: [N, W - 1, channels], the convolution's last inputs, in the activations' dtype.
        memory: float32 [N, ...], the recurrent state.
    """

    window: Tensor
    memory: Tensor

    @staticmethod
    def empty(rows: int, history: int, channels: int, memory: Sequence[int], like: Tensor) -> RecurrentState:
        """A state that has seen nothing; `memory` is its shape for one sequence."""
        wide = torch.promote_types(like.dtype, torch.float32)
        return RecurrentState(like.new_zeros(rows, history, channels), like.new_zeros(rows, *memory, dtype=wide))

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.window.nbytes + self.memory.nbytes

    def select(self, rows: Sequence[int]) -> RecurrentState:
        """A copy that holds these sequences, in this order; raises StateUsed."""
        self.check_unused()
        index = torch.as_tensor(list(rows), device=self.memory.device)
        return RecurrentState(self.window[index], self.memory[index])

    @staticmethod
    def concat(states: Sequence[RecurrentState]) -> RecurrentState:
        """The sequences of several states, in order; raises StateUsed."""
        for state in states:
            state.check_unused()
        return RecurrentState(torch.cat([s.window for s in states]), torch.cat([s.memory for s in states]))
