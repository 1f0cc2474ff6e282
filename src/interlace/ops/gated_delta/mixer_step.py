"""One token of a Gated DeltaNet layer, all that lies between its projections, in one native call."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels as native
from interlace.ops.core.kernels import DTYPES, address


def mixer_step_serves(
    projected: Tensor,
    taps: Tensor,
    norm: Tensor,
    gates: tuple[Tensor, Tensor],
    window: Tensor,
    memory: Tensor,
    heads: int,
) -> bool:
    """Whether `mixer_step` can take these tensors: on a CPU, of one dtype the kernels know, and without gradients.

    Raises:
        ShapeError: the state is not one of this layer's for these sequences.
    """
    if not native.available() or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    same = projected.dtype == taps.dtype == norm.dtype == window.dtype and memory.dtype == torch.float32
    N, (G, K, V) = projected.shape[0], memory.shape[1:]
    channels = 2 * heads * K + G * V
    sizes = (taps.shape[0], projected.shape[1] - channels, norm.shape[0], gates[0].shape[0])
    shapes = (window.shape[0], memory.shape[0], *window.shape[1:])
    if sizes != (channels, G * V + 2 * G, V, G) or shapes != (N, N, taps.shape[1] - 1, channels):
        raise ShapeError(
            f"gated_delta: the state's memory {list(memory.shape)} and window {list(window.shape)} do not fit this "
            f"layer and {N} sequences; it was made by another model"
        )
    if not all(gate.dtype == torch.float32 and gate.is_contiguous() for gate in gates):
        return False
    laid = window.is_contiguous() and memory.is_contiguous() and taps.is_contiguous()
    return projected.device.type == "cpu" and projected.dtype in DTYPES and same and laid


def mixer_step(
    projected: Tensor,
    taps: Tensor,
    norm: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    window: Tensor,
    memory: Tensor,
    *,
    heads: int,
    negative_eigenvalues: bool,
    eps: float,
) -> Tensor:
    """Short convolution, SiLU, unit keys and queries, gates, the rule, gated norm: the layer's own formulas.

    Args:
        projected: [N, 2 H K + 2 G V + 2 G], query, key, value, gate, decay and beta side by side.
        taps: [2 H K + G V, W].
        norm: [V], the gated norm's weight.
        A_log, dt_bias: float32 [G].
        window: [N, W - 1, 2 H K + G V], changed in place.
        memory: float32 [N, G, K, V], changed in place.
        heads: H.
        negative_eigenvalues: whether beta is doubled.
        eps: of the gated norm.

    Returns:
        [N, G V] in projected's dtype.
    """
    N, G, K, V = memory.shape
    out = projected.new_empty(N, G * V)
    tensors = (projected, taps, norm, A_log, dt_bias, window, memory)
    sizes = [DTYPES[projected.dtype], projected.stride(0), N, heads, G, K, V, taps.shape[1], negative_eigenvalues]
    sizes.append(torch.get_num_threads())
    native.kernels().mixer_step([address(x) for x in tensors], sizes, K**-0.5, eps, address(out))
    for changed in (window, memory):
        torch.autograd.graph.increment_version(changed)
    return out
