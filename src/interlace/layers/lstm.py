"""LSTM: a recurrence whose next state is not a linear function of the last; torch's own, over ragged sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from interlace.base.segments import Segments
from interlace.layers.base import MixerConfig, Stream
from interlace.layers.low_rank import with_adapter
from interlace.layers.norm import NormStyle
from interlace.layers.parts import Parts
from interlace.layers.projection import Projections, without_autocast
from interlace.ops.core import across
from interlace.ops.core.layer_state import LayerState
from interlace.ops.core.tables import made_once, on_device


@dataclass
class LSTMState(LayerState):
    """The state of one layer for N sequences.

    Attributes:
        hidden, cell: float32 [N, H].
    """

    hidden: Tensor
    cell: Tensor


class LSTMConfig(MixerConfig):
    """LSTM.

    Attributes:
        hidden: size of the hidden state and of the cell (H).
    """

    hidden: int = Field(gt=0)

    def check(self, width: int) -> None:
        """Accept any sizes: all fit together."""

    def build(self, width: int, style: NormStyle) -> LSTM:
        """Return the module."""
        return LSTM(width, self)

    def _matrices(self, width: int) -> int:
        return self.hidden * (4 * width + 4 * self.hidden + width)

    def parameters(self, width: int) -> int:
        """Count gates, their bias, and the output's projection."""
        return self._matrices(width) + 4 * self.hidden

    def flops_per_token(self, width: int, context: float) -> float:
        """Count two for each element of a matrix; the same at any context."""
        return 2.0 * self._matrices(width)

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Count hidden state and cell, in float32."""
        return 8 * self.hidden

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: no keys and values are kept."""
        return 0


class LSTM(Projections):
    """LSTM with a forget gate, and one bias for torch's two.

    Source: Hochreiter, Schmidhuber, "Long Short-Term Memory", 1997.
    """

    GROUPS = (("output",),)
    READ_WHOLE = ("input", "recurrent")

    def __init__(self, width: int, config: LSTMConfig):
        """width: the width of the model."""
        super().__init__()
        self.config = config
        self.input = nn.Linear(width, 4 * config.hidden)  # input, forget, cell and output gates
        self.recurrent = nn.Linear(config.hidden, 4 * config.hidden, bias=False)
        self.output = nn.Linear(config.hidden, width, bias=False)

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        gates = Parts((self.config.hidden,) * 4)
        return {"input.weight": gates, "recurrent.weight": gates}

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> LSTMState:
        """Return the state of `rows` sequences that have seen nothing."""
        wide = torch.promote_types(like.dtype, torch.float32)
        return LSTMState(*(like.new_zeros(rows, self.config.hidden, dtype=wide) for _ in range(2)))

    def forward(self, x: Tensor, stream: Stream, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        segments, stretch = stream.segments.whole, stream.segments.across
        if stretch is not None:  # no state of a part says what came before: each worker runs whole sequences
            x = across.gather(x, stretch)
        wide = torch.promote_types(x.dtype, torch.float32)
        before = self.initial_state(segments.count, x) if state is None else state
        sizes, order, back, rows, at = placed_order(segments, x.device)
        weights = [
            with_adapter(self.input),
            with_adapter(self.recurrent),
            self.input.bias,
            torch.zeros_like(self.input.bias),
        ]
        with without_autocast(x):
            out, hidden, cell = torch.lstm(
                x.to(wide)[order],
                sizes,
                [y[rows].unsqueeze(0) for y in (before.hidden, before.cell)],
                [w.to(wide) for w in weights],
                True,  # biases
                1,  # layer
                0.0,  # dropout
                torch.is_grad_enabled(),  # in training: cuDNN has no gradients otherwise
                False,  # one direction
            )
        after = LSTMState(hidden[0, at], cell[0, at])
        out = out[back].to(x.dtype)
        return self.project("output", out if stretch is None else across.own(out, stretch)), after


def placed_order(segments: Segments, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `packed_order`, but for its counts on a device: counts, tokens and their places, sequences and theirs.

    One token for each sequence is in order as it is; nothing is copied from the host.
    """
    if segments.time == 1:
        each = torch.arange(segments.count, device=device)
        return torch.full((1,), segments.count), each, each, each, each
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = made_once(_placed, segments.offsets, device)
    return found


def _placed(offsets: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes, order, rows = packed_order(Segments.from_offsets(offsets))
    back, at = torch.argsort(order), torch.argsort(rows)
    order, back, rows, at = (on_device(x, device) for x in (order, back, rows, at))
    return sizes, order, back, rows, at


def packed_order(segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """Return how torch packs ragged sequences.

    That is: rows alive at each time (falling), tokens in that order, sequences in that order.
    """
    lengths = torch.tensor(segments.lengths)
    rows = torch.argsort(lengths, descending=True, stable=True)
    times = torch.arange(int(lengths.max()))
    alive = lengths[rows][None, :] > times[:, None]
    starts = torch.tensor([first for first, _ in segments.spans()])
    return alive.sum(1), (starts[rows][None, :] + times[:, None])[alive], rows
