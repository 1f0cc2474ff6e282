"""Cross-entropy by a Triton kernel, as a torch custom op that changes the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels
from interlace.ops.cross_entropy import triton_kernels

COLUMNS, STAGES = 4096, 3  # of a tile, and one more than the tiles that are loaded ahead
WARPS = 8


def _forward(logits: Tensor, targets: Tensor, ignored: int, factor: float, factors: Tensor | None) -> Tensor:
    rows, D = logits.shape
    losses = _shapes(logits, targets, ignored, factor, factors)
    columns = min(COLUMNS, 1 << max(7, (D - 1).bit_length()))
    constants = {"D": D, "ROW": D if rows == 1 else logits.stride(0), "COLS": columns, "EACH": factors is not None}
    factors = None if factors is None else factors.contiguous()
    arguments = (logits, targets.contiguous(), factors, losses, ignored, factor)
    gpu.launch(triton_kernels.losses, rows, arguments, {**constants, "STAGES": STAGES}, WARPS)
    return losses


def _shapes(logits: Tensor, targets: Tensor, ignored: int, factor: float, factors: Tensor | None) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


_operator = torch.library.custom_op(
    "interlace::cross_entropy_triton",
    _forward,
    mutates_args=("logits",),
    schema="(Tensor(a!) logits, Tensor targets, int ignored, float factor, Tensor? factors) -> Tensor",
)
_operator.register_fake(_shapes)


def run(logits: Tensor, targets: Tensor, ignored: int, factor: float | Tensor) -> Tensor:
    """`cross_entropy_` on logits of float32 or bfloat16 on a GPU."""
    one, each = (1.0, factor) if isinstance(factor, Tensor) else (factor, None)
    if kernels.wants_graph(logits):
        found: Tensor = _operator(logits, targets, ignored, one, each)
        return found
    losses = _forward(logits, targets, ignored, one, each)
    torch.autograd.graph.increment_version(logits)
    return losses
