"""Gated DeltaNet as Olmo Hybrid has it: separate projections, short convolution, gated norm."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from interlace.base.errors import BackendUnavailable
from interlace.layers.base import MixerConfig, Stream
from interlace.layers.low_rank import with_adapter
from interlace.layers.norm import GatedRMSNorm, NormStyle
from interlace.layers.parts import Division, check_divides, columns, rows
from interlace.layers.projection import Projections
from interlace.layers.recurrent_state import RecurrentState
from interlace.layers.timescale import draw_steps
from interlace.ops.core import gpu
from interlace.ops.core.backends import Backend, choose
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta.dispatch import run
from interlace.ops.gated_delta.flops import flops_per_token_and_head
from interlace.ops.gated_delta.mixer_step import NATIVE, TRITON, MixerStep, mixer_step
from interlace.ops.short_convolution.dispatch import short_convolution


class GatedDeltaConfig(MixerConfig):
    """Gated DeltaNet.

    Attributes:
        heads: query and key heads (H).
        value_heads: value heads (G), a multiple of heads; None for as many.
        key_dim: size of a key head (K).
        value_dim: size of a value head (V).
        convolution: taps of the short convolution (W).
        negative_eigenvalues: doubles beta, so that a token may reflect the state and not only erase from it.
        norm_eps: the eps of the gated norm, whatever the model's own eps is.
        decay_range, step_range, step_floor: the initial decay rate A and step dt are drawn from these.
    """

    heads: int = Field(gt=0)
    value_heads: int | None = Field(default=None, gt=0)
    key_dim: int = Field(gt=0)
    value_dim: int = Field(gt=0)
    convolution: int = Field(default=4, ge=2)
    negative_eigenvalues: bool = True
    norm_eps: float = Field(default=1e-5, gt=0)
    decay_range: tuple[float, float] = Field(default=(0.0, 16.0), strict=False)
    step_range: tuple[float, float] = Field(default=(1e-3, 1e-1), strict=False)
    step_floor: float = 1e-4

    @property
    def groups(self) -> int:
        """How many value heads there are."""
        return self.value_heads or self.heads

    @property
    def channels(self) -> tuple[int, int, int]:
        """Sizes of the query, key and value projections."""
        return self.heads * self.key_dim, self.heads * self.key_dim, self.groups * self.value_dim

    def filled(self, width: int) -> GatedDeltaConfig:
        """Return the config with value_heads filled in."""
        return self.model_copy(update={"value_heads": self.groups})

    def check(self, width: int) -> None:
        """Check that the heads divide."""
        if self.groups % self.heads:
            raise ValueError(f"value_heads: {self.groups} is not a multiple of heads = {self.heads}")

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("heads", self.heads, workers)
        G, (key, _, value) = self.groups, self.channels
        cuts = {f"{name}.weight": rows(key) for name in ("query", "key")}
        cuts |= {f"{name}.weight": rows(value) for name in ("value", "gate")}
        cuts |= {"decay.weight": rows(G), "beta.weight": rows(G), "A_log": rows(G), "dt_bias": rows(G)}
        cuts |= {"convolution": rows(key, key, value), "output.weight": columns(value)}
        own = {"heads": self.heads // workers, "value_heads": G // workers}
        return Division(self.model_copy(update=own), cuts)

    def build(self, width: int, style: NormStyle) -> GatedDelta:
        """Return the module."""
        return GatedDelta(width, self)

    def parameters(self, width: int) -> int:
        """Count projections, convolution, gates and norm."""
        _, key, value = self.channels
        projections = width * (2 * key + 2 * value + 2 * self.groups) + value * width
        return projections + self.convolution * (2 * key + value) + 2 * self.groups + self.value_dim

    def flops_per_token(self, width: int, context: float) -> float:
        """Count projections, convolution and the chunked rule; the same at any context."""
        _, key, value = self.channels
        products = 2.0 * width * (2 * key + 3 * value + 2 * self.groups)
        rule = self.groups * flops_per_token_and_head(self.key_dim, self.value_dim, self.groups // self.heads)
        return products + 2.0 * self.convolution * (2 * key + value) + rule

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Count the float32 memory, and the convolution's window in the activations' dtype."""
        window = (self.convolution - 1) * sum(self.channels) * element_bytes
        return 4 * self.groups * self.key_dim * self.value_dim + window

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: no keys and values are kept."""
        return 0


class GatedDelta(Projections):
    """Gated DeltaNet. Source: arXiv 2412.06464; the details are those of Olmo Hybrid, arXiv 2604.03444 section 2.1."""

    FLOAT32 = ("A_log", "dt_bias")
    GROUPS = (("query", "key", "value", "gate", "decay", "beta"), ("output",))

    def __init__(self, width: int, config: GatedDeltaConfig):
        """width: the width of the model."""
        super().__init__()
        self.config = config
        G, (key, _, value) = config.groups, config.channels
        self.query = nn.Linear(width, key, bias=False)
        self.key = nn.Linear(width, key, bias=False)
        self.value = nn.Linear(width, value, bias=False)
        self.gate = nn.Linear(width, value, bias=False)
        self.decay = nn.Linear(width, G, bias=False)
        self.beta = nn.Linear(width, G, bias=False)
        self.output = nn.Linear(value, width, bias=False)
        self.convolution = nn.Parameter(torch.empty(2 * key + value, config.convolution))
        self.A_log = nn.Parameter(torch.empty(G, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(G, dtype=torch.float32))
        self.norm = GatedRMSNorm(config.value_dim, config.norm_eps)
        if not self.convolution.is_meta:
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw A uniformly; dt log-uniformly, stored through the inverse of softplus; taps as nn.Conv1d draws them."""
        config = self.config
        draw_steps(self.dt_bias, *config.step_range, config.step_floor)
        self.A_log.uniform_(*config.decay_range).clamp_(min=1e-6).log_()
        self.convolution.uniform_(-1, 1).mul_(config.convolution**-0.5)

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> RecurrentState:
        """Return the state of `rows` sequences that have seen nothing."""
        c = self.config
        memory = (c.groups, c.key_dim, c.value_dim)
        return RecurrentState.empty(rows, c.convolution - 1, sum(c.channels), memory, like)

    def forward(self, x: Tensor, stream: Stream, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        if state is not None:
            state.check_unused()
        operands = (self.project("query", x), self, stream, state)
        out, after = choose("gated_delta layer", BACKENDS, "auto", *operands)(*operands)
        return self.project("output", out), after

    def by_operators(
        self, projected: Tensor, stream: Stream, state: RecurrentState | None
    ) -> tuple[Tensor, RecurrentState]:
        """Compute all between the projections by operators: [total, 2 H K + 2 G V + 2 G] to [total, G V]."""
        c, G, (key, _, value) = self.config, self.config.groups, self.config.channels
        mixed, gate, decay, beta = projected.split((2 * key + value, value, G, G), dim=-1)
        window, memory = (None, None) if state is None else (state.window, state.memory)
        taps = self.convolution.to(projected.dtype)
        mixed, window = short_convolution(mixed, taps, segments=stream.segments, state=window)
        both, value_heads = mixed.split((2 * key, value), dim=-1)
        query_heads, key_heads = both.unflatten(-1, (-1, c.key_dim)).chunk(2, dim=1)
        beta = beta.sigmoid() * (2 if c.negative_eigenvalues else 1)
        log_decay = -self.A_log.exp() * softplus(decay.to(self.dt_bias.dtype) + self.dt_bias)
        inputs = (query_heads, key_heads, value_heads.unflatten(-1, (-1, c.value_dim)), log_decay, beta)
        out, memory = run(Recurrence.of(inputs, stream.segments, memory, normalise=True), segments=stream.segments)
        out = self.norm(out, gate.unflatten(-1, (-1, c.value_dim)))
        return out.flatten(1), RecurrentState(window, memory)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """Return what each token keeps and writes, [total, G] each, of the layer's input [total, D]."""
        decay = nn.functional.linear(x, with_adapter(self.decay).to(x.dtype)).to(self.dt_bias.dtype)
        beta = nn.functional.linear(x, with_adapter(self.beta).to(x.dtype)).sigmoid()
        doubled = 2 if self.config.negative_eigenvalues else 1
        return {"decay": (-self.A_log.exp() * softplus(decay + self.dt_bias)).exp(), "beta": beta * doubled}

    def operands(self, projected: Tensor, stream: Stream, state: RecurrentState | None) -> Any:
        """Return the operands of the fused pass."""
        fused = import_module("interlace.layers.gated_delta_fused")
        config, segments = self.config, stream.segments
        return fused.Mixer(
            projected=projected,
            taps=self.convolution.to(projected.dtype),
            A_log=self.A_log,
            dt_bias=self.dt_bias,
            norm=self.norm.weight,
            offsets=segments.offsets,
            window=None if state is None else state.window,
            memory=None if state is None else state.memory,
            time=segments.time or 0,
            heads=config.heads,
            negative_eigenvalues=config.negative_eigenvalues,
            eps=self.norm.eps,
            differentiable=False,
        )

    def step(self, projected: Tensor, state: RecurrentState) -> MixerStep:
        """Return the operands of the fused step."""
        return MixerStep(
            projected=projected,
            taps=self.convolution.to(projected.dtype),
            norm=self.norm.weight,
            A_log=self.A_log,
            dt_bias=self.dt_bias,
            window=state.window,
            memory=state.memory,
            heads=self.config.heads,
            negative_eigenvalues=self.config.negative_eigenvalues,
            eps=self.norm.eps,
        )


def _is_step(_: Tensor, layer: GatedDelta, stream: Stream, state: RecurrentState | None) -> bool:
    """Return whether this is one token per sequence, without gradients."""
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return state is not None and stream.segments.time == 1 and not traced


def _fused(
    projected: Tensor, layer: GatedDelta, stream: Stream, state: RecurrentState
) -> tuple[Tensor, RecurrentState]:
    """Compute all between the projections in one call; the state is changed in place, as the call uses it up."""
    return mixer_step(layer.step(projected, state.use())), RecurrentState(state.window, state.memory)


def _operators(
    projected: Tensor, layer: GatedDelta, stream: Stream, state: RecurrentState | None
) -> tuple[Tensor, RecurrentState]:
    return layer.by_operators(projected, stream, state)


def _kernels(row: Backend) -> Backend:
    """Return the row of this layer that takes a step by kernels, if they can."""

    def refuses(projected: Tensor, layer: GatedDelta, stream: Stream, state: RecurrentState | None) -> str | None:
        if state is None or not _is_step(projected, layer, stream, state):
            return "it takes one token of each sequence, without gradients"
        return row.obstacle(layer.step(projected, state))

    def load() -> Callable[..., tuple[Tensor, RecurrentState]]:
        if row.loaded[0] is None:
            raise BackendUnavailable(row.loaded[1])
        return _fused

    def wanted(projected: Tensor, layer: GatedDelta, stream: Stream, state: RecurrentState | None) -> bool:
        return (
            projected.device.type in row.devices and row.when(projected) and _is_step(projected, layer, stream, state)
        )

    return Backend(row.name, load, row.devices, refuses, when=wanted)


def _load_pass() -> Callable[..., tuple[Tensor, RecurrentState]]:
    """Return what computes all between the projections in one operator; it imports the modules of kernels."""
    if reason := gpu.missing():
        raise BackendUnavailable(reason)
    fused = import_module("interlace.layers.gated_delta_fused")

    def run(
        projected: Tensor, layer: GatedDelta, stream: Stream, state: RecurrentState | None
    ) -> tuple[Tensor, RecurrentState]:
        out, window, memory = fused.mixer(layer.operands(projected, stream, state))
        return out, RecurrentState(window, memory)

    return run


def _refuses_pass(projected: Tensor, layer: GatedDelta, stream: Stream, state: RecurrentState | None) -> str | None:
    fused = import_module("interlace.layers.gated_delta_fused")
    reason: str | None = fused.refuses(layer.operands(projected, stream, state))
    return reason


BACKENDS = (
    _kernels(TRITON),
    _kernels(NATIVE),
    Backend(
        "triton pass",
        _load_pass,
        TRITON.devices,
        _refuses_pass,
        when=lambda projected, _, stream, __: stream.segments.across is None and TRITON.when(projected),
    ),
    Backend("operators", lambda: _operators, slow_on=("cpu", "cuda")),
)
