"""One token of a Gated DeltaNet layer in one native call: all that lies between its projections."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels
from interlace.ops.core.kernels import DTYPES, address


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


def refuses(s: MixerStep) -> str | None:
    """Return why `mixer_step` cannot take these tensors, or None."""
    if reason := kernels.refuses(s.projected):
        return reason
    if not s.projected.dtype == s.taps.dtype == s.norm.dtype == s.window.dtype or s.memory.dtype != torch.float32:
        return "weights, state and activations differ in dtype"
    gates = (s.A_log, s.dt_bias)
    if any(x.dtype != torch.float32 for x in gates):
        return "A_log and dt_bias are not float32"
    tensors = (s.taps, s.window, s.memory, *gates)
    return None if all(x.is_contiguous() for x in tensors) else "weights or state are not contiguous"


def mixer_step(s: MixerStep) -> Tensor:
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
    out = s.projected.new_empty(N, G * V)
    numbers = [DTYPES[s.projected.dtype], s.projected.stride(0), N, s.heads, G, K, V, s.taps.shape[1]]
    numbers += [s.negative_eigenvalues, torch.get_num_threads()]
    kernels.module().mixer_step([address(x) for x in s[:7]], numbers, K**-0.5, s.eps, address(out))
    for changed in (s.window, s.memory):
        torch.autograd.graph.increment_version(changed)
    return out
