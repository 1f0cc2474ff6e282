"""One token of a Gated DeltaNet layer in one call: all that lies between its projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from interlace.base.errors import ShapeError
from interlace.ops.core import gpu, kernels
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.core.kernels import DTYPES, address
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta.step import step


class MixerStep(NamedTuple):
    """The operands of one token for each of N sequences.

    Attributes:
        projected: [N, 2 H K + 2 G V + 2 G], query, key, value, gate, decay and beta side by side.
        taps: [2 H K + G V, W].
        norm: [V], the gated norm's weight.
        A_log, dt_bias: float32 [G].
        window: [N, W - 1, 2 H K + G V], changed in place.
        memory: float32 [N, G, K, V], changed in place.
        heads: H.
        negative_eigenvalues: whether beta is doubled.
        eps: the eps of the gated norm.
    """

    projected: Tensor
    taps: Tensor
    norm: Tensor
    A_log: Tensor
    dt_bias: Tensor
    window: Tensor
    memory: Tensor
    heads: int
    negative_eigenvalues: bool
    eps: float

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.projected.device


def _differs(s: MixerStep) -> str | None:
    """Return why no kernel can take these tensors, or None."""
    if not s.projected.dtype == s.taps.dtype == s.norm.dtype == s.window.dtype or s.memory.dtype != torch.float32:
        return "weights, state and activations differ in dtype"
    gates = (s.A_log, s.dt_bias)
    if any(x.dtype != torch.float32 for x in gates):
        return "A_log and dt_bias are not float32"
    tensors = (s.taps, s.window, s.memory, *gates)
    return None if all(x.is_contiguous() for x in tensors) else "weights or state are not contiguous"


def _refuses_gpu(s: MixerStep) -> str | None:
    W = s.taps.shape[1]
    if W > gpu.MOST_TAPS:
        return f"the kernels take at most {gpu.MOST_TAPS} taps, not {W}"
    return kernels.refuses(*s[:7]) or _differs(s)


def _native(s: MixerStep) -> Tensor:
    N, (G, K, V) = s.projected.shape[0], s.memory.shape[1:]
    out = s.projected.new_empty(N, G * V)
    numbers = [DTYPES[s.projected.dtype], s.projected.stride(0), N, s.heads, G, K, V, s.taps.shape[1]]
    numbers += [s.negative_eigenvalues, torch.get_num_threads()]
    kernels.module().mixer_step([address(x) for x in s[:7]], numbers, K**-0.5, s.eps, address(out))
    for changed in (s.window, s.memory):
        torch.autograd.graph.increment_version(changed)
    return out


def plain(s: MixerStep) -> Tensor:
    """The same in plain PyTorch: the truth. Arithmetic is float32 at least."""
    wide = torch.promote_types(s.projected.dtype, torch.float32)
    N, (G, K, V), H = s.projected.shape[0], s.memory.shape[1:], s.heads
    mixed, gate, decay, beta = s.projected.to(wide).split((2 * H * K + G * V, G * V, G, G), dim=1)
    inputs = torch.cat((s.window.to(wide), mixed.unsqueeze(1)), dim=1)
    query, key, value = silu((inputs * s.taps.to(wide).T).sum(1)).split((H * K, H * K, G * V), dim=1)
    s.window.copy_(inputs[:, 1:])
    tensors = (query.view(N, H, K), key.view(N, H, K), value.view(N, G, V))
    log_decay = -s.A_log.exp() * softplus(decay + s.dt_bias)
    strength = beta.sigmoid() * (1 + s.negative_eigenvalues)
    memory = s.memory.to(wide)
    out, after = step(Recurrence.of((*tensors, log_decay, strength), None, memory, normalise=True))
    s.memory.copy_(after)
    inverse = torch.rsqrt(out.square().mean(-1, keepdim=True) + s.eps)
    out = s.norm.to(wide) * (out * inverse) * silu(gate.view(N, G, V))
    return out.flatten(1).to(s.projected.dtype)


def _selects(s: MixerStep) -> tuple[torch.dtype, tuple[int, ...]]:
    (G, K, V), W = s.memory.shape[1:], s.taps.shape[1]
    return s.projected.dtype, (G // s.heads, K, V, W)


TRITON = gpu.backend("gated_delta", _refuses_gpu, _selects, part="mixer_step")
NATIVE = kernels.backend(lambda: _native, lambda s: kernels.refuses(s.projected) or _differs(s), ("cpu",))
BACKENDS = (TRITON, NATIVE, Backend("plain", lambda: plain, slow_on=(ANY,)))


def mixer_step(s: MixerStep, backend: str = "auto") -> Tensor:
    """Short convolution, SiLU, unit keys and queries, gates, the rule, gated norm: the layer's own formulas.

    Returns:
        [N, G V] in projected's dtype.

    Raises:
        ShapeError: the state is not one of this layer's for these sequences.
    """
    N, (G, K, V) = s.projected.shape[0], s.memory.shape[1:]
    channels = 2 * s.heads * K + G * V
    sizes = (s.taps.shape[0], s.projected.shape[1] - channels, s.norm.shape[0], s.A_log.shape[0])
    shapes = (s.window.shape[0], s.memory.shape[0], *s.window.shape[1:])
    if sizes != (channels, G * V + 2 * G, V, G) or shapes != (N, N, s.taps.shape[1] - 1, channels):
        raise ShapeError(
            f"gated_delta: the state's memory {list(s.memory.shape)} and window {list(s.window.shape)} do not fit this "
            f"layer and {N} sequences; it was made by another model"
        )
    run: Callable[[MixerStep], Tensor] = choose("gated_delta layer", BACKENDS, backend, s)
    return run(s)
