"""Hyena: a gated convolution as long as the sequence, whose taps a small network makes from their age.

Decoding keeps every input and sums over all of them for each token: its memory and its work grow with the context, as
`cache_bytes` and `flops_per_token` say. (StripedHyena's filters, sums of exponentials, can be decoded from a fixed
state; filters from a network cannot.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from interlace.base.errors import BackendUnavailable
from interlace.layers.base import MixerConfig, Stream
from interlace.layers.norm import NormStyle
from interlace.layers.parts import Division, Parts, check_divides, columns, rows
from interlace.layers.projection import Projections, without_autocast
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.layer_state import LayerState
from interlace.ops.long_convolution.dispatch import long_convolution
from interlace.ops.short_convolution.dispatch import short_convolution

STEPS = 64  # tokens by which a filter that is kept between calls grows at least


@dataclass
class HyenaState(LayerState):
    """The state of one layer for N sequences.

    Attributes:
        window: [N, W - 1, 3 D], the short convolution's last inputs.
        past: every input of the long convolution, as attention keeps its keys.
    """

    window: Tensor
    past: AttentionState

    def on_device(self, places: Tensor) -> HyenaState:
        """Raise BackendUnavailable; see `LayerState.on_device`."""
        raise BackendUnavailable("a layer of kind hyena sums over as many inputs as the host says there are")

    def in_rows(self, slots: int) -> HyenaState:
        """Raise BackendUnavailable; see `LayerState.in_rows`."""
        raise BackendUnavailable("a layer of kind hyena sums over as many inputs as the host says there are")


class HyenaConfig(MixerConfig):
    """Hyena of order two.

    Attributes:
        channels: channels of the convolution (D).
        convolution: taps of the short convolution before it (W).
        filter_width: hidden size of the network that makes the taps.
        filter_bands: how many sines and cosines of a tap's age it reads.
        reach: the age, in tokens, that the slowest of them turns once in; taps may be older.
        fast, slow: after how many tokens a channel's taps have fallen to 1/e, from the first channel to the last.
    """

    channels: int = Field(gt=0)
    convolution: int = Field(default=3, ge=2)
    filter_width: int = Field(default=64, gt=0)
    filter_bands: int = Field(default=8, gt=0)
    reach: int = Field(default=8192, gt=0)
    fast: float = Field(default=8.0, gt=0)
    slow: float = Field(default=2048.0, gt=0)

    @property
    def features(self) -> int:
        """How many numbers the network reads of an age."""
        return 1 + 2 * self.filter_bands

    def check(self, width: int) -> None:
        """Accept any sizes: all fit together."""

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("channels", self.channels, workers)
        D = self.channels
        cuts = {"input.weight": rows(D, D, D), "convolution": rows(D, D, D), "output.weight": columns(D)}
        cuts |= {name: rows(D) for name in ("taps.weight", "log_rate", "skip")}
        return Division(self.model_copy(update={"channels": D // workers}), cuts)

    def build(self, width: int, style: NormStyle) -> Hyena:
        """Return the module."""
        return Hyena(width, self)

    def _matrices(self, width: int) -> int:
        D, hidden = self.channels, self.filter_width
        return 4 * width * D + hidden * (self.features + hidden + D)

    def parameters(self, width: int) -> int:
        """Count projections, short convolution, and the network that makes the taps."""
        D = self.channels
        return self._matrices(width) + 3 * D * self.convolution + 2 * self.filter_width + 2 * D

    def flops_per_token(self, width: int, context: float) -> float:
        """Count projections, a tap for each token of a sequence, and three transforms of twice its length."""
        D = self.channels
        length = 2 * context - 1  # `context` is half of the sequence, on average
        transforms = 3 * 5.0 * D * math.log2(2 * length) if length > 1 else 0.0
        return 2.0 * self._matrices(width) + 2.0 * self.convolution * 3 * D + transforms

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Count the short convolution's window."""
        return (self.convolution - 1) * 3 * self.channels * element_bytes

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Count every input of the long convolution."""
        return context * self.channels * element_bytes


class Hyena(Projections):
    """Hyena of order two. Source: Poli et al., "Hyena Hierarchy", arXiv 2302.10866, section 3."""

    FLOAT32 = ("log_rate",)
    GROUPS = (("input",), ("output",))

    def __init__(self, width: int, config: HyenaConfig):
        """width: the width of the model."""
        super().__init__()
        self.config, self.size = config, config.channels
        self.input = nn.Linear(width, 3 * self.size, bias=False)  # two gates and a value
        self.output = nn.Linear(self.size, width, bias=False)
        self.convolution = nn.Parameter(torch.empty(3 * self.size, config.convolution))
        hidden = config.filter_width
        self.age = nn.Linear(config.features, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.taps = nn.Linear(hidden, self.size, bias=False)
        self.log_rate = nn.Parameter(torch.empty(self.size, dtype=torch.float32))
        self.skip = nn.Parameter(torch.ones(self.size))
        self.kept: tuple[tuple[object, ...], Tensor] | None = None
        self._read: list[Tensor] = []
        if not self.convolution.is_meta:
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Set rates log-uniform from fast to slow, in order; draw taps of the short convolution as nn.Conv1d does."""
        c = self.config
        spread = torch.linspace(0, 1, self.size, device=self.log_rate.device)
        self.log_rate.copy_(-(math.log(c.fast) * (1 - spread) + math.log(c.slow) * spread))
        self.convolution.uniform_(-1, 1).mul_(c.convolution**-0.5)

    def filter(self, length: int) -> Tensor:
        """Return the taps [length, D] of ages 0 and up, in float32 at least.

        Calls that need no gradients share them.
        """
        weights = [self.age.weight, self.age.bias, self.mix.weight, self.mix.bias, self.taps.weight, self.log_rate]
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            return self._filter(length)
        if any(w.is_inference() for w in weights):  # which do not tell when they are written to
            return self._filter(length)
        version = tuple((w.data_ptr(), w._version) for w in weights)
        if self.kept is None or self.kept[0] != version or self.kept[1].shape[0] < length:
            held = 0 if self.kept is None else self.kept[1].shape[0]
            grown = held if held >= length else held + max(STEPS, held // 4) if held else 0
            with torch.inference_mode(False), torch.no_grad():
                self._read = [w.detach() for w in weights]  # so that no address is given to other values
                self.kept = version, self._filter(max(length, grown))
        return self.kept[1][:length]

    def _filter(self, length: int) -> Tensor:
        c = self.config
        dtype = self.log_rate.dtype
        age = torch.arange(length, device=self.log_rate.device, dtype=dtype)
        turns = age[:, None] / c.reach * torch.arange(1, c.filter_bands + 1, device=age.device, dtype=dtype)
        angles = 2 * math.pi * turns
        features = torch.cat(((age / c.reach)[:, None], angles.sin(), angles.cos()), dim=1)
        with without_autocast(age):
            hidden = features
            for layer in (self.age, self.mix):
                hidden = torch.sin(nn.functional.linear(hidden, layer.weight.to(dtype), layer.bias.to(dtype)))
            taps = nn.functional.linear(hidden, self.taps.weight.to(dtype))
        return taps * torch.exp(-age[:, None] * self.log_rate.exp())

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        return {"input.weight": Parts((self.size,) * 3)}

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> HyenaState:
        """Return the state of `rows` sequences that have seen nothing."""
        window = like.new_zeros(rows, self.config.convolution - 1, 3 * self.size)
        return HyenaState(window, AttentionState.empty(rows, 1, self.size, 0, None, like, reserve))

    def forward(self, x: Tensor, stream: Stream, state: HyenaState | None) -> tuple[Tensor, HyenaState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        segments = stream.segments
        window, past = (None, None) if state is None else (state.window, state.past)
        mixed, window = short_convolution(
            self.project("input", x), self.convolution, segments=segments, state=window, activation=None
        )
        outer, inner, value = mixed.chunk(3, dim=-1)
        value = inner * value
        seen = [0] * segments.count if past is None else past.positions
        lengths = segments.lengths if state is not None else segments.whole.lengths
        taps = self.filter(max(lengths) if state is None else max(map(sum, zip(seen, lengths, strict=True))))
        out, past = long_convolution(value, taps, segments=segments, state=past)
        out = outer * (out + self.skip.to(out.dtype) * value)
        return self.project("output", out), HyenaState(window, past)
