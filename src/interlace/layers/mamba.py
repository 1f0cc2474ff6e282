"""Mamba: a short convolution, then a state for each channel whose steps, reads and writes depend on the input."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from interlace.layers.base import MixerConfig, Stream
from interlace.layers.norm import NormStyle
from interlace.layers.parts import Division, Parts, check_divides, check_no_bias, columns, rows
from interlace.layers.projection import Projections, same_memory
from interlace.layers.recurrent_state import RecurrentState
from interlace.layers.timescale import draw_steps
from interlace.ops.core.quantised import Rounding
from interlace.ops.decay_gate.dispatch import decay_gate
from interlace.ops.selective_scan.dispatch import run
from interlace.ops.selective_scan.operands import Scan
from interlace.ops.short_convolution.dispatch import short_convolution, side_by_side


class MambaConfig(MixerConfig):
    """Mamba.

    Attributes:
        inner: channels, each with a state of its own.
        state_dim: size of a channel's state (K).
        step_rank: what a token's steps dt are squeezed through.
        convolution: taps of the short convolution (W).
        convolution_bias: whether it has a bias.
        bias: whether the two outer projections have biases.
        step_range, step_floor: the initial dt is drawn from these.
    """

    inner: int = Field(gt=0)
    state_dim: int = Field(default=16, gt=0)
    step_rank: int = Field(gt=0)
    convolution: int = Field(default=4, ge=2)
    convolution_bias: bool = True
    bias: bool = False
    step_range: tuple[float, float] = Field(default=(1e-3, 1e-1), strict=False)
    step_floor: float = 1e-4

    def check(self, width: int) -> None:
        """Accept any sizes: all fit together."""

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("inner", self.inner, workers)
        check_no_bias(self.bias, workers)
        names = ("step.weight", "convolution", "A_log", "dt_bias", "D")
        cuts = {name: rows(self.inner) for name in (*names, *(("convolution_bias",) if self.convolution_bias else ()))}
        cuts |= {"input.weight": rows(self.inner, self.inner)}
        cuts |= {f"{name}.weight": columns(self.inner) for name in ("selection", "output")}
        return Division(self.model_copy(update={"inner": self.inner // workers}), cuts, summed=("selection",))

    def build(self, width: int, style: NormStyle) -> Mamba:
        """Return the module."""
        return Mamba(width, self)

    def _matrices(self, width: int) -> int:
        return self.inner * (3 * width + 2 * self.step_rank + 2 * self.state_dim)

    def parameters(self, width: int) -> int:
        """Count projections, convolution, decays, steps and skip."""
        biases = self.bias * (2 * self.inner + width)
        convolution = self.inner * (self.convolution + self.convolution_bias)
        return self._matrices(width) + biases + convolution + self.inner * (self.state_dim + 2)

    def flops_per_token(self, width: int, context: float) -> float:
        """Count projections, convolution and, for each element of the state, its decay, write and read."""
        return 2.0 * self._matrices(width) + 2.0 * self.convolution * self.inner + 6.0 * self.inner * self.state_dim

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Count the float32 states, and the convolution's window in the activations' dtype."""
        return 4 * self.inner * self.state_dim + (self.convolution - 1) * self.inner * element_bytes

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: no keys and values are kept."""
        return 0


class Mamba(Projections):
    """Mamba. Source: arXiv 2312.00752; state-spaces/mamba, mamba_ssm/modules/mamba_simple.py."""

    FLOAT32 = ("A_log", "dt_bias", "D")
    GROUPS = (("input",), ("selection",), ("step",), ("output",))

    def __init__(self, width: int, config: MambaConfig):
        """width: the width of the model."""
        super().__init__()
        self.config = c = config
        self.input = nn.Linear(width, 2 * c.inner, bias=c.bias)  # x, z
        self.selection = nn.Linear(c.inner, c.step_rank + 2 * c.state_dim, bias=False)  # dt, B, C
        self.step = nn.Linear(c.step_rank, c.inner, bias=False)
        self.output = nn.Linear(c.inner, width, bias=c.bias)
        self.convolution = nn.Parameter(torch.empty(c.inner, c.convolution))
        self.convolution_bias = nn.Parameter(torch.empty(c.inner)) if c.convolution_bias else None
        self.A_log = nn.Parameter(torch.empty(c.inner, c.state_dim, dtype=torch.float32))
        self.dt_bias = nn.Parameter(torch.empty(c.inner, dtype=torch.float32))
        self.D = nn.Parameter(torch.ones(c.inner, dtype=torch.float32))
        self._packed_A: tuple[Tensor, Tensor] | None = None  # A_log, and A of it
        if not self.convolution.is_meta:
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Set A = 1 .. K in each channel and D = 1; draw dt log-uniformly, and taps as nn.Conv1d draws them."""
        c = self.config
        draw_steps(self.dt_bias, *c.step_range, c.step_floor)
        self.A_log.copy_(torch.arange(1.0, c.state_dim + 1, device=self.A_log.device).log().expand_as(self.A_log))
        self.convolution.uniform_(-1, 1).mul_(c.convolution**-0.5)
        if self.convolution_bias is not None:
            self.convolution_bias.zero_()

    def pack(self, rounding: Rounding | None = None) -> None:
        """Pack the weights for decoding, the convolution's too; compute A once."""
        super().pack(rounding)
        self._packed_A = self.A_log.detach(), -self.A_log.detach().exp()
        if self.convolution_bias is not None:
            both = side_by_side(self.convolution.detach(), self.convolution_bias.detach())
            self.convolution.data, self.convolution_bias.data = both

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        c = self.config
        selection = Parts((c.step_rank, c.state_dim, c.state_dim))
        return {"input.weight": Parts((c.inner, c.inner)), "selection.weight": selection}

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> RecurrentState:
        """Return the state of `rows` sequences that have seen nothing."""
        c = self.config
        return RecurrentState.empty(rows, c.convolution - 1, c.inner, (c.inner, c.state_dim), like)

    def forward(self, x: Tensor, stream: Stream, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        c = self.config
        window, memory = (None, None) if state is None else (state.window, state.memory)
        mixed, gate = self.project("input", x).chunk(2, dim=-1)
        taps, bias = self.convolution, self.convolution_bias
        mixed, window = short_convolution(mixed, taps, bias=bias, segments=stream.segments, state=window)
        sizes = (c.step_rank, c.state_dim, c.state_dim)
        step, B, C = self.project("selection", mixed).split(sizes, dim=-1)
        _, step = decay_gate(self.project("step", step), self.dt_bias)
        segments = stream.segments
        scan = Scan(mixed, step, self._A(), B, C, segments.offsets, memory, segments.time or 0)
        out, memory = run(scan, segments=segments)
        out = torch.addcmul(out, self.D.to(out.dtype), mixed) * silu(gate)
        return self.project("output", out), RecurrentState(window, memory)

    def _A(self) -> Tensor:
        if self._packed_A is not None and not torch.is_grad_enabled() and same_memory(self.A_log, self._packed_A[0]):
            return self._packed_A[1]
        return -self.A_log.exp()
