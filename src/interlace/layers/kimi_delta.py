"""Kimi Delta Attention: a delta rule whose key channels each forget at their own rate; gates pass a bottleneck."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from interlace.layers.base import MixerConfig, Stream
from interlace.layers.low_rank import with_adapter
from interlace.layers.norm import GatedRMSNorm, NormStyle
from interlace.layers.parts import Division, check_divides, columns, rows
from interlace.layers.projection import Projections
from interlace.layers.recurrent_state import RecurrentState
from interlace.layers.timescale import draw_steps
from interlace.ops.core.operands import Recurrence
from interlace.ops.decay_gate.dispatch import decay_gate
from interlace.ops.kimi_delta.dispatch import run
from interlace.ops.kimi_delta.flops import flops_per_token_and_head
from interlace.ops.short_convolution.dispatch import short_convolution


class KimiDeltaConfig(MixerConfig):
    """Kimi Delta Attention.

    Attributes:
        heads: heads of queries, keys and values (H).
        key_dim: size of a key head (K).
        value_dim: size of a value head (V).
        decay_rank, gate_rank: what decays and output gates are squeezed through; None for value_dim.
        convolution: taps of the short convolution (W).
        negative_eigenvalues: doubles beta, so that a token may reflect the state and not only erase from it.
        norm_eps: the eps of the gated norm.
        decay_range, step_range, step_floor: the initial decay rate A and step dt are drawn from these.
    """

    heads: int = Field(gt=0)
    key_dim: int = Field(gt=0)
    value_dim: int = Field(gt=0)
    decay_rank: int | None = Field(default=None, gt=0)
    gate_rank: int | None = Field(default=None, gt=0)
    convolution: int = Field(default=4, ge=2)
    negative_eigenvalues: bool = False
    norm_eps: float = Field(default=1e-5, gt=0)
    decay_range: tuple[float, float] = Field(default=(1.0, 16.0), strict=False)
    step_range: tuple[float, float] = Field(default=(1e-3, 1e-1), strict=False)
    step_floor: float = 1e-4

    @property
    def channels(self) -> tuple[int, int, int]:
        """Sizes of the query, key and value projections."""
        return self.heads * self.key_dim, self.heads * self.key_dim, self.heads * self.value_dim

    @property
    def ranks(self) -> tuple[int, int]:
        """The bottleneck sizes of decays and gates."""
        return self.decay_rank or self.value_dim, self.gate_rank or self.value_dim

    def check(self, width: int) -> None:
        """Accept any sizes: all fit together."""

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("heads", self.heads, workers)
        (key, _, value), (decay, gate) = self.channels, self.ranks
        cuts = {f"{name}.weight": rows(key) for name in ("query", "key", "decay_up")}
        cuts |= {f"{name}.weight": rows(value) for name in ("value", "gate_up")}
        cuts |= {"beta.weight": rows(self.heads), "A_log": rows(self.heads), "dt_bias": rows(key)}
        cuts |= {"convolution": rows(key, key, value), "output.weight": columns(value)}
        own = {"heads": self.heads // workers, "decay_rank": decay, "gate_rank": gate}
        return Division(self.model_copy(update=own), cuts)

    def build(self, width: int, style: NormStyle) -> KimiDelta:
        """Return the module."""
        return KimiDelta(width, self)

    def _matrices(self, width: int) -> int:
        _, key, value = self.channels
        decay, gate = self.ranks
        read = width * (2 * key + value + self.heads + decay + gate)
        return read + decay * key + gate * value + value * width

    def parameters(self, width: int) -> int:
        """Count projections, convolution, decays and norm."""
        _, key, _ = self.channels
        return self._matrices(width) + self.convolution * sum(self.channels) + self.heads + key + self.value_dim

    def flops_per_token(self, width: int, context: float) -> float:
        """Count projections, convolution and the chunked rule; the same at any context."""
        rule = self.heads * flops_per_token_and_head(self.key_dim, self.value_dim)
        return 2.0 * self._matrices(width) + 2.0 * self.convolution * sum(self.channels) + rule

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Count the float32 memory, and the convolution's window in the activations' dtype."""
        window = (self.convolution - 1) * sum(self.channels) * element_bytes
        return 4 * self.heads * self.key_dim * self.value_dim + window

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: no keys and values are kept."""
        return 0


class KimiDelta(Projections):
    """Kimi Delta Attention.

    Source: arXiv 2510.26692, section 3 and 4; fla-org/flash-linear-attention, fla/layers/kda.py.
    """

    FLOAT32 = ("A_log", "dt_bias")
    GROUPS = (
        ("query", "key", "value", "beta", "decay_down", "gate_down"),
        ("decay_up",),
        ("gate_up",),
        ("output",),
    )

    def __init__(self, width: int, config: KimiDeltaConfig):
        """width: the width of the model."""
        super().__init__()
        self.config = config
        (key, _, value), (decay, gate) = config.channels, config.ranks
        self.query = nn.Linear(width, key, bias=False)
        self.key = nn.Linear(width, key, bias=False)
        self.value = nn.Linear(width, value, bias=False)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.decay_down, self.decay_up = nn.Linear(width, decay, bias=False), nn.Linear(decay, key, bias=False)
        self.gate_down, self.gate_up = nn.Linear(width, gate, bias=False), nn.Linear(gate, value, bias=False)
        self.output = nn.Linear(value, width, bias=False)
        self.convolution = nn.Parameter(torch.empty(2 * key + value, config.convolution))
        self.A_log = nn.Parameter(torch.empty(config.heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(key, dtype=torch.float32))
        self.norm = GatedRMSNorm(config.value_dim, config.norm_eps, "sigmoid")
        if not self.convolution.is_meta:
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw A uniformly and dt log-uniformly; taps as nn.Conv1d draws them."""
        config = self.config
        draw_steps(self.dt_bias, *config.step_range, config.step_floor)
        self.A_log.uniform_(*config.decay_range).clamp_(min=1e-6).log_()
        self.convolution.uniform_(-1, 1).mul_(config.convolution**-0.5)

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> RecurrentState:
        """Return the state of `rows` sequences that have seen nothing."""
        c = self.config
        return RecurrentState.empty(rows, c.convolution - 1, sum(c.channels), (c.heads, c.key_dim, c.value_dim), like)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Return what each token keeps [total, H K] and writes [total, H], of the layer's input [total, D]."""
        c, dtype = self.config, self.dt_bias.dtype
        down = nn.functional.linear(x, with_adapter(self.decay_down).to(x.dtype))
        decay = nn.functional.linear(down, with_adapter(self.decay_up).to(x.dtype)).to(dtype)
        rate = self.A_log.exp().repeat_interleave(c.key_dim)
        beta = nn.functional.linear(x, with_adapter(self.beta).to(x.dtype)).sigmoid()
        decay = (-rate * nn.functional.softplus(decay + self.dt_bias)).exp()
        return {"decay": decay, "beta": beta * (2 if c.negative_eigenvalues else 1)}

    def forward(self, x: Tensor, stream: Stream, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        c, (key, _, value) = self.config, self.config.channels
        window, memory = (None, None) if state is None else (state.window, state.memory)
        sizes = (2 * key + value, c.heads, *c.ranks)
        mixed, beta, decay, gate = self.project("query", x).split(sizes, dim=-1)
        mixed, window = short_convolution(mixed, self.convolution, segments=stream.segments, state=window)
        both, values = mixed.split((2 * key, value), dim=-1)
        queries, keys = both.unflatten(-1, (-1, c.key_dim)).chunk(2, dim=1)
        log_decay, _ = decay_gate(self.project("decay_up", decay), self.dt_bias, self.A_log, keep_step=False)
        beta = beta.sigmoid() * (2 if c.negative_eigenvalues else 1)
        inputs = (queries, keys, values.unflatten(-1, (-1, c.value_dim)), log_decay.unflatten(-1, (c.heads, -1)), beta)
        out, memory = run(Recurrence.of(inputs, stream.segments, memory, normalise=True), segments=stream.segments)
        gate = self.project("gate_up", gate).unflatten(-1, (-1, c.value_dim))
        return self.project("output", self.norm(out, gate).flatten(1)), RecurrentState(window, memory)
