"""Mamba-2: one projection, a short convolution, a state space with a scalar decay per head, a gate before the norm."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from interlace.layers.base import MixerConfig, Stream
from interlace.layers.low_rank import with_adapter
from interlace.layers.norm import GroupedGatedRMSNorm, NormStyle
from interlace.layers.parts import Division, Parts, check_divides, check_no_bias, columns, rows
from interlace.layers.projection import Projections
from interlace.layers.recurrent_state import RecurrentState
from interlace.layers.timescale import draw_steps
from interlace.ops.core.operands import Recurrence
from interlace.ops.core.quantised import Rounding
from interlace.ops.decay_gate.dispatch import decay_gate
from interlace.ops.short_convolution.dispatch import short_convolution, side_by_side
from interlace.ops.state_space.dispatch import run
from interlace.ops.state_space.flops import flops_per_token_and_head


class Mamba2Config(MixerConfig):
    """Mamba-2.

    Attributes:
        heads: value heads (G).
        head_dim: size of a value head (V).
        groups: groups of heads that share B and C (H); the norm's statistics are taken over each group too.
        state_dim: size of B and C (K).
        convolution: taps of the short convolution (W).
        convolution_bias: whether it has a bias.
        bias: whether the two projections have biases.
        min_step, max_step: limits of dt after softplus; None for no upper one.
        norm_eps: the eps of the gated norm.
        step_range, step_floor: the initial dt is drawn from these.
    """

    heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    groups: int = Field(default=1, gt=0)
    state_dim: int = Field(gt=0)
    convolution: int = Field(default=4, ge=2)
    convolution_bias: bool = True
    bias: bool = False
    min_step: float = Field(default=0.0, ge=0)
    max_step: float | None = Field(default=None, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    step_range: tuple[float, float] = Field(default=(1e-3, 1e-1), strict=False)
    step_floor: float = 1e-4

    @property
    def inner(self) -> int:
        """Size of all value heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> tuple[int, int, int]:
        """Sizes of what the convolution reads: x, B and C."""
        return self.inner, self.groups * self.state_dim, self.groups * self.state_dim

    def check(self, width: int) -> None:
        """Check that the heads divide."""
        if self.heads % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide heads = {self.heads}")

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("heads", self.heads, workers)
        check_no_bias(self.bias, workers)
        if self.groups > 1:
            check_divides("groups", self.groups, workers)
        every, shared = workers, min(self.groups, workers)
        mixed = rows(*self.channels, pieces=(every, shared, shared))
        cuts = {name: rows(self.heads) for name in ("A_log", "dt_bias", "D")}
        cuts |= {
            "input.weight": rows(self.inner, *self.channels, self.heads, pieces=(every, every, shared, shared, every)),
            "convolution": mixed,
            "norm.weight": rows(self.inner),
            "output.weight": columns(self.inner),
        }
        if self.convolution_bias:
            cuts["convolution_bias"] = mixed
        own = {"heads": self.heads // workers, "groups": max(1, self.groups // workers)}
        return Division(self.model_copy(update=own), cuts, ("norm",) if self.groups == 1 else ())

    def build(self, width: int, style: NormStyle) -> Mamba2:
        """Return the module."""
        return Mamba2(width, self)

    def parameters(self, width: int) -> int:
        """Count projections, convolution, the three scalars of each head, and norm."""
        into = self.inner + sum(self.channels) + self.heads
        projections = into * (width + self.bias) + width * (self.inner + self.bias)
        convolution = sum(self.channels) * (self.convolution + self.convolution_bias)
        return projections + convolution + 3 * self.heads + self.inner

    def flops_per_token(self, width: int, context: float) -> float:
        """Count projections, convolution and the chunked rule; the same at any context."""
        products = 2.0 * width * (2 * self.inner + sum(self.channels) + self.heads)
        rule = self.heads * flops_per_token_and_head(self.state_dim, self.head_dim, self.heads // self.groups)
        return products + 2.0 * self.convolution * sum(self.channels) + rule

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Count the float32 memory, and the convolution's window in the activations' dtype."""
        window = (self.convolution - 1) * sum(self.channels) * element_bytes
        return 4 * self.heads * self.state_dim * self.head_dim + window

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: no keys and values are kept."""
        return 0


class Mamba2(Projections):
    """Mamba-2. Source: arXiv 2405.21060; state-spaces/mamba, mamba_ssm/modules/mamba2.py (norm_before_gate false)."""

    FLOAT32 = ("A_log", "dt_bias", "D")
    GROUPS = (("input",), ("output",))

    def __init__(self, width: int, config: Mamba2Config):
        """width: the width of the model."""
        super().__init__()
        self.config = config
        channels = sum(config.channels)
        self.input = nn.Linear(width, config.inner + channels + config.heads, bias=config.bias)  # z, x, B, C, dt
        self.output = nn.Linear(config.inner, width, bias=config.bias)
        self.convolution = nn.Parameter(torch.empty(channels, config.convolution))
        self.convolution_bias = nn.Parameter(torch.empty(channels)) if config.convolution_bias else None
        self.A_log = nn.Parameter(torch.empty(config.heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(config.heads, dtype=torch.float32))
        self.D = nn.Parameter(torch.ones(config.heads, dtype=torch.float32))
        self.norm = GroupedGatedRMSNorm(config.inner, config.norm_eps, config.groups)
        if not self.convolution.is_meta:
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw A uniformly in [1, 16] and dt log-uniformly, set D = 1; taps as nn.Conv1d draws them."""
        config = self.config
        draw_steps(self.dt_bias, *config.step_range, config.step_floor)
        self.A_log.uniform_(1.0, 16.0).log_()
        self.convolution.uniform_(-1, 1).mul_(config.convolution**-0.5)
        if self.convolution_bias is not None:
            self.convolution_bias.zero_()

    def pack(self, rounding: Rounding | None = None) -> None:
        """Pack the weights for decoding, the convolution's too."""
        super().pack(rounding)
        if self.convolution_bias is not None:
            both = side_by_side(self.convolution.detach(), self.convolution_bias.detach())
            self.convolution.data, self.convolution_bias.data = both

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        return {"input.weight": Parts((self.config.inner, *self.config.channels, self.config.heads))}

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> RecurrentState:
        """Return the state of `rows` sequences that have seen nothing."""
        c = self.config
        memory = (c.heads, c.state_dim, c.head_dim)
        return RecurrentState.empty(rows, c.convolution - 1, sum(c.channels), memory, like)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Return what each token keeps and its step, [total, G] each, of the layer's input [total, D]."""
        c = self.config
        weight = with_adapter(self.input)[-c.heads :].to(x.dtype)
        bias = None if self.input.bias is None else self.input.bias[-c.heads :].to(x.dtype)
        dt = nn.functional.linear(x, weight, bias).to(self.dt_bias.dtype)
        step = nn.functional.softplus(dt + self.dt_bias).clamp(c.min_step, c.max_step)
        return {"decay": (-self.A_log.exp() * step).exp(), "step": step}

    def forward(self, x: Tensor, stream: Stream, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        c = self.config
        window, memory = (None, None) if state is None else (state.window, state.memory)
        gate, mixed, dt = self.project("input", x).split((c.inner, sum(c.channels), c.heads), dim=-1)
        taps, bias = self.convolution, self.convolution_bias
        mixed, window = short_convolution(mixed, taps, bias=bias, segments=stream.segments, state=window)
        value, key, query = mixed.split(c.channels, dim=-1)
        value = value.unflatten(-1, (c.heads, -1))
        query, key = (y.unflatten(-1, (c.groups, -1)) for y in (query, key))
        log_decay, step = decay_gate(dt, self.dt_bias, self.A_log, low=c.min_step, high=c.max_step)
        inputs = (query, key, value, log_decay, step)
        out, memory = run(Recurrence.of(inputs, stream.segments, memory, scale=1.0), segments=stream.segments)
        out = torch.addcmul(out, self.D.to(out.dtype)[:, None], value)
        return self.project("output", self.norm(out.flatten(1), gate)), RecurrentState(window, memory)
