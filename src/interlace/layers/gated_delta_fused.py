"""All that lies between the projections of a Gated DeltaNet layer, as one operator on a GPU.

The operators' kernels follow each other without a copy: the convolution reads its slice of the projections, the rule
reads queries, keys and values where the convolution wrote them, and in the backward pass each writes its slice of the
gradient of the projections. The convolved inputs, the rule's output and what the rule keeps are kept for backward.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from interlace.base.segments import Segments
from interlace.ops.core import gpu, kernels, self_check
from interlace.ops.core.backends import constant_when_traced
from interlace.ops.core.cases import Case
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.delta_kernels import given_back
from interlace.ops.core.operands import Recurrence
from interlace.ops.core.self_check import Probe
from interlace.ops.gated_delta import triton as rule
from interlace.ops.gated_delta.dispatch import run
from interlace.ops.rms_norm import triton as norms
from interlace.ops.rms_norm.dispatch import rms_norm
from interlace.ops.short_convolution import triton as convolution
from interlace.ops.short_convolution.dispatch import short_convolution
from interlace.ops.short_convolution.operands import Convolution

INPUTS = (
    "Tensor projected, Tensor taps, Tensor A_log, Tensor dt_bias, Tensor norm, Tensor offsets, Tensor? window, "
    "Tensor? memory, SymInt time, SymInt heads, bool negative_eigenvalues, float eps, bool differentiable"
)
FORM = (0.0, "silu", False)  # of the gated norm: no offset, SiLU, after the norm
KEPT = 5 + len(rule.Saved._fields)  # tensors for the backward pass
GRADIENTS = ("projected", "taps", "A_log", "dt_bias", "norm", "window", "memory")


class Mixer(NamedTuple):
    """One call.

    Attributes:
        projected: [total, 2 H K + 2 G V + 2 G], query, key, value, gate, decay and beta side by side.
        taps: [2 H K + G V, W].
        A_log, dt_bias: float32 [G].
        norm: [V], the gated norm's weight.
        offsets: int32 [N + 1], where sequences start, and total.
        window: [N, W - 1, 2 H K + G V], the inputs before each sequence; None for zeros.
        memory: float32 [N, G, K, V], what each sequence starts from; None for zeros.
        time: tokens of each sequence where all have as many, else 0.
        heads: H.
        negative_eigenvalues: whether beta is doubled.
        eps: of the gated norm.
        differentiable: whether to keep what a backward pass needs.
    """

    projected: Tensor
    taps: Tensor
    A_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    offsets: Tensor
    window: Tensor | None
    memory: Tensor | None
    time: int
    heads: int
    negative_eigenvalues: bool
    eps: float
    differentiable: bool

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.projected.device

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Return (total, channels of the convolution, G, K, V)."""
        total, channels = self.projected.shape[0], self.taps.shape[0]
        G, V = self.A_log.shape[0], self.norm.shape[0]
        return total, channels, G, (channels - G * V) // (2 * self.heads), V

    def convolution(self) -> Convolution:
        """Return the convolution's operands."""
        channels = self.taps.shape[0]
        return Convolution(self.projected[:, :channels], self.taps, self.offsets, self.window, True, False, self.time)

    def gate(self) -> Tensor:
        """Return the output gate [total, G, V], where it lies."""
        _, channels, G, _, V = self.sizes
        return self.projected[:, channels : channels + G * V].unflatten(1, (G, V))

    def recurrence(self, mixed: Tensor, log_decay: Tensor, beta: Tensor) -> Recurrence:
        """Return the rule's operands, read from the convolved inputs [total, channels] where they lie."""
        _, _, G, K, V = self.sizes
        both, value = mixed.split((2 * self.heads * K, G * V), dim=1)
        query, key = both.unflatten(1, (2 * self.heads, K)).split(self.heads, dim=1)
        tensors = (query, key, value.unflatten(1, (G, V)), log_decay, beta)
        return Recurrence(*tensors, self.offsets, self.memory, K**-0.5, self.time, True)


def _shapes(*inputs: Any) -> tuple[Tensor, ...]:
    x = Mixer(*inputs)
    total, channels, G, K, V = x.sizes
    N, new = x.offsets.shape[0] - 1, x.projected.new_empty
    visible = (new(total, G * V), new(N, x.taps.shape[1] - 1, channels), new(N, G, K, V, dtype=torch.float32))
    return *visible, *(room(x) if x.differentiable else [new(0) for _ in range(KEPT)])


def room(x: Mixer) -> tuple[Tensor, ...]:
    """Return room for what lies between the parts of the layer, and what the rule saves."""
    total, channels, G, _, V = x.sizes
    new = x.projected.new_empty
    mixed, read = new(total, channels), new(total, G, V)
    inverse, log_decay, beta = (new(total, G, dtype=torch.float32) for _ in range(3))
    saved = rule.room(x.recurrence(mixed, log_decay, beta), keep=x.differentiable)
    return mixed, read, inverse, log_decay, beta, *saved


def _forward(*inputs: Any) -> tuple[Tensor, ...]:
    x = Mixer(*inputs)
    total, channels, G, _, V = x.sizes
    outputs = out, windows, final, *kept = _shapes(*inputs)
    mixed, read, inverse, log_decay, beta, *saved = kept if x.differentiable else room(x)
    convolution.convolve(x.convolution(), mixed, windows)
    rule.gates(x.projected, channels + G * V, x.A_log, x.dt_bias, x.negative_eigenvalues, (log_decay, beta))
    plan = rule.Plan(x.recurrence(mixed, log_decay, beta))
    rule.forward(plan, read, final, rule.Saved(*saved), keep=x.differentiable)
    norms.forward_into((read, x.norm, None, x.gate(), None, x.eps, *FORM), out.view(total, G, V), out, inverse)
    return outputs


def _backward(d_out: Tensor, d_windows: Tensor | None, d_final: Tensor | None, *given: Any) -> tuple[Tensor, ...]:
    mixed, read, inverse, log_decay, beta, *saved = given[:KEPT]
    x = Mixer(*given[KEPT:])
    total, channels, G, _, V = x.sizes
    d_projected, d_mixed = torch.empty_like(x.projected), torch.empty_like(mixed)
    d_read, d_gate = torch.empty_like(read), x._replace(projected=d_projected).gate()
    operands = (read, x.norm, x.gate(), inverse, *FORM)
    d_norm = norms.backward_into(d_out.view(total, G, V), None, operands, d_read, read.new_empty(0), d_gate)
    plan = rule.Plan(x.recurrence(mixed, log_decay, beta))
    to = x.recurrence(d_mixed, log_decay, beta)[:3]
    dg, db, d_memory = rule.backward(plan, d_read, d_final, rule.Saved(*saved), to)
    d_A, d_bias = rule.gates_backward(
        x.projected, channels + G * V, x.A_log, x.dt_bias, x.negative_eigenvalues, (log_decay, dg, db), d_projected
    )
    d_taps, d_window = convolution.go_back(x.convolution(), d_mixed, d_windows, d_projected[:, :channels])
    d_memory = given_back(d_memory, x.memory)
    return d_projected, d_taps, d_A, d_bias, d_norm.to(x.norm.dtype), d_window, d_memory


_operator = custom_op(
    "gated_delta_mixer", Signature(INPUTS, GRADIENTS, outputs=3 + KEPT, hidden=KEPT), _forward, _backward, _shapes
)


def mixer(x: Mixer) -> tuple[Tensor, Tensor, Tensor]:
    """Return [total, G V], the windows and the memories after these tokens."""
    tensors = (x.projected, x.taps, x.A_log, x.dt_bias, x.norm, x.window, x.memory)
    out, windows, final, *_ = _operator(*x._replace(differentiable=kernels.wants_gradients(*tensors)))
    return out, windows, final


def refuses(x: Mixer) -> str | None:
    """Return why the kernels cannot serve a call, or None; they are checked once for each size of head."""
    _, _, G, K, V = x.sizes
    W = x.taps.shape[1]
    if max(K, V) > gpu.LARGEST_HEAD or W > gpu.MOST_TAPS:
        largest = f"{gpu.LARGEST_HEAD} channels and {gpu.MOST_TAPS} taps"
        return f"the kernels take heads of at most {largest}, not {K} x {V} and {W}"
    if x.projected.dtype != x.taps.dtype or {x.A_log.dtype, x.dt_bias.dtype} != {torch.float32}:
        return "taps and activations differ in dtype, or the gates' weights are not float32"
    if reason := kernels.refuses(x.projected, x.taps, x.A_log, x.dt_bias, x.norm, x.window, x.memory):
        return reason
    if x.device.type not in gpu.CHECKED:
        return None
    return _objection(x.projected.dtype, G // x.heads, K, V, W, x.device)


def _objection(dtype: torch.dtype, group: int, K: int, V: int, W: int, device: torch.device) -> str | None:
    """Return why one of the kernels must not serve, or None: each by itself, then all together in float32.

    In bfloat16 the gradient of A_log is a small sum of large terms, and says little about the kernels.
    """
    parts = (("gated_delta", (K, V)), ("short_convolution", (W,)), ("rms_norm", (V,)))
    for operator, sizes in parts:
        if reason := gpu.checked(operator, "", dtype, sizes, device):
            return reason
    return _together((group, K, V, W), device)


@constant_when_traced
def _together(sizes: tuple[int, ...], device: torch.device) -> str | None:
    case = partial(mixer_case, [1, 70, 580], *sizes)
    return self_check.objection(Probe("gated_delta mixer", torch.float32, sizes, case), device)


def mixer_case(lengths: list[int], group: int, key_dim: int, value_dim: int, taps: int) -> Case:
    """Make the case that the kernels are checked with: a layer's projections, and a state carried in."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    total, N, H, K, V, W = sum(lengths), len(lengths), 2, key_dim, value_dim, taps
    G = H * group
    channels = 2 * H * K + G * V
    tensors = {"projected": normal(total, channels + G * V + 2 * G), "taps": normal(channels, W), "norm": normal(V)}
    tensors |= {"A_log": normal(G), "dt_bias": normal(G) - 3, "window": normal(N, W - 1, channels)}
    tensors["memory"] = normal(N, G, K, V)
    segments = Segments.from_lengths(lengths)

    def call(backend: str, x: dict[str, Tensor]) -> list[Tensor]:
        wide = {n: x[n].to(torch.promote_types(x[n].dtype, torch.float32)) for n in ("A_log", "dt_bias", "memory")}
        form = {"heads": H, "negative_eigenvalues": True, "eps": 1e-6, "differentiable": False}
        call = Mixer(**{**x, **wide}, offsets=segments.offsets, time=segments.time or 0, **form)  # type: ignore[arg-type]
        return list(mixer(call) if backend == "triton" else plain(call, segments))

    return Case("gated_delta", "mixer", tensors, call, shared=("window", "memory"), truth="plain")


def plain(x: Mixer, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """The truth: the same by the operators' recurrences."""
    _, channels, G, _, V = x.sizes
    mixed, windows = short_convolution(
        x.projected[:, :channels], x.taps, segments=segments, state=x.window, backend="recurrent"
    )
    decay, logits = x.projected[:, channels + G * V :].split(G, dim=1)
    beta = logits.to(x.A_log.dtype).sigmoid() * (1 + x.negative_eigenvalues)
    log_decay = -x.A_log.exp() * softplus(decay.to(x.A_log.dtype) + x.dt_bias)
    out, final = run(x.recurrence(mixed, log_decay, beta), "recurrent")
    out, _ = rms_norm(out, x.norm, x.eps, gate=x.gate(), dtype=x.projected.dtype, backend="plain")
    return out.flatten(1), windows, final
