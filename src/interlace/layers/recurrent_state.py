"""The state that a recurrent mixer with a short convolution carries from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interlace.ops.core.layer_state import LayerState


@dataclass
class RecurrentState(LayerState):
    """The state of one layer for N sequences; a step that changes it in place uses it up.

    Attributes:
        window: [N, W - 1, channels], the convolution's last inputs, in the activations' dtype.
        memory: float32 [N, ...], the recurrent state.
    """

    window: Tensor
    memory: Tensor

    @staticmethod
    def empty(rows: int, history: int, channels: int, memory: Sequence[int], like: Tensor) -> RecurrentState:
        """Return a state that has seen nothing; `memory` is its shape for one sequence."""
        wide = torch.promote_types(like.dtype, torch.float32)
        return RecurrentState(like.new_zeros(rows, history, channels), like.new_zeros(rows, *memory, dtype=wide))
