"""The public operator `decay_gate`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import gpu, kernels
from interlace.ops.core.backends import Backend, choose
from interlace.ops.decay_gate import native
from interlace.ops.decay_gate.plain import LARGEST, plain


def _refuses_gpu(x: Tensor, dt_bias: Tensor, A_log: Tensor | None, *_: object) -> str | None:
    return kernels.refuses(x, dt_bias, A_log)


def _refuses_cpu(x: Tensor, dt_bias: Tensor, A_log: Tensor | None, *_: object) -> str | None:
    if dt_bias.dtype != torch.float32:
        return f"the kernel writes float32, and dt_bias is {dt_bias.dtype}"
    return kernels.refuses(x, dt_bias, A_log)


BACKENDS = (
    gpu.backend("decay_gate", _refuses_gpu, lambda x, *_: (x.dtype, (x.shape[1],))),
    kernels.backend(lambda: native.run, _refuses_cpu),
    Backend("plain", lambda: plain, slow_on=("cuda",)),
)


def decay_gate(
    x: Float[Tensor, "total C"],
    dt_bias: Float[Tensor, " C"],
    A_log: Float[Tensor, " G"] | None = None,
    *,
    low: float = 0.0,
    high: float | None = None,
    keep_step: bool = True,
    backend: str = "auto",
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """step = clamp(softplus(x + dt_bias), low, high);  log_decay = -exp(A_log) step.

    Args:
        x: [total, C], what a layer projects.
        dt_bias: [C], in float32 as a rule.
        A_log: [G], the logarithm of each head's rate; C is a multiple of G. None: only the step is computed.
        low, high: limits of the step; no upper one if None.
        keep_step: whether the step is wanted beside log_decay.
        backend: "auto", "triton" or "native" (float32 and bfloat16; on a GPU, on a CPU) or "plain".

    Returns:
        log_decay and step, [total, C] in dt_bias' dtype; one that is not wanted has no elements.

    Raises:
        ShapeError: sizes disagree; the message names the argument.

    Source: arXiv 2312.00752 and 2405.21060; README.md beside this file.
    """
    C, G = x.shape[1], 1 if A_log is None else A_log.shape[0]
    if dt_bias.shape != (C,):
        raise ShapeError(f"decay_gate: dt_bias has shape {list(dt_bias.shape)}, but x has {C} channels")
    if C % G:
        raise ShapeError(f"decay_gate: A_log has {G} heads, which do not divide the {C} channels of x")
    operands = (x, dt_bias, A_log, low, LARGEST if high is None else min(high, LARGEST), keep_step)
    found: tuple[Tensor, Tensor] = choose("decay_gate", BACKENDS, backend, *operands)(*operands)
    return found
