"""The gates of a decay by the compiled kernel; where gradients are wanted they are plain's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interlace.ops.core import kernels
from interlace.ops.core.kernels import DTYPES, address, floats, rows
from interlace.ops.decay_gate.plain import LARGEST, plain


def run(
    x: Tensor, dt_bias: Tensor, A_log: Tensor | None, low: float, high: float, keep_step: bool
) -> tuple[Tensor, Tensor]:
    """`decay_gate` on CPU tensors of float32 or bfloat16."""
    if kernels.wants_graph(x, dt_bias, A_log):
        return plain(x, dt_bias, A_log, low, high, keep_step)
    x, bias, rate = rows(x), floats(dt_bias), None if A_log is None else floats(A_log)
    log_decay, step = (
        x.new_empty(x.shape if wanted else (0,), dtype=torch.float32) for wanted in (A_log is not None, keep_step)
    )
    sizes = [*x.shape, 1 if A_log is None else A_log.shape[0], x.stride(0), DTYPES[x.dtype], torch.get_num_threads()]
    to = [kernels.NONE if y.numel() == 0 else address(y) for y in (log_decay, step)]
    limits = [low, high if high < LARGEST else math.inf]
    kernels.module().decay_gate([address(y) for y in (x, bias, rate)], sizes, limits, to)
    return log_decay, step
