"""The gates of a decay by Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlace.ops.core import gpu, kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.gpu import power
from interlace.ops.decay_gate import triton_kernels

ELEMENTS, CHANNELS, LOOPS, WARPS = 2048, 256, 8, 4  # of a tile, and how many tiles a program of `backward` takes


def _launch(
    kernel: Any, x: Tensor, given: tuple[Tensor | None, ...], limits: tuple[float, float], wanted: tuple[bool, bool]
) -> None:
    """given: the kernel's tensors but x, A_log the second; wanted: whether log_decay and step are."""
    (total, C), A_log = x.shape, given[1]
    columns = min(CHANNELS, power(C))
    rows = ELEMENTS // columns
    constants = {"C": C, "HEAD": 1 if A_log is None else C // A_log.shape[0], "BC": columns, "BT": rows}
    loops = LOOPS if kernel is triton_kernels.backward else 1
    if kernel is triton_kernels.backward:
        constants["LOOPS"] = loops
    programs = -(-total // (rows * loops)) * -(-C // columns)
    arguments = (x, *given, x.stride(0), total, *limits)
    gpu.launch(kernel, programs, arguments, constants | {"DECAY": wanted[0], "STEP": wanted[1]}, WARPS)


def _shapes(
    x: Tensor, dt_bias: Tensor, A_log: Tensor | None, low: float, high: float, keep_step: bool
) -> tuple[Tensor, Tensor]:
    log_decay, step = (
        x.new_empty(x.shape if wanted else (0,), dtype=torch.float32) for wanted in (A_log is not None, keep_step)
    )
    return log_decay, step


def _forward(
    x: Tensor, dt_bias: Tensor, A_log: Tensor | None, low: float, high: float, keep_step: bool
) -> tuple[Tensor, Tensor]:
    outputs = _shapes(x, dt_bias, A_log, low, high, keep_step)
    given = (dt_bias, A_log, *outputs)
    _launch(triton_kernels.forward, gpu.rows(x), given, (low, high), (A_log is not None, keep_step))
    return outputs


def _backward(
    d_log_decay: Tensor,
    d_step: Tensor | None,
    x: Tensor,
    dt_bias: Tensor,
    A_log: Tensor | None,
    low: float,
    high: float,
    keep_step: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, C = torch.empty_like(x, memory_format=torch.contiguous_format), x.shape[1]
    rows = ELEMENTS // min(CHANNELS, power(C)) * LOOPS
    shares = x.new_empty(-(-x.shape[0] // rows), 2, C, dtype=torch.float32)
    wanted = (A_log is not None, keep_step and d_step is not None)
    due = (d_log_decay, None if d_step is None else d_step.contiguous())
    _launch(triton_kernels.backward, gpu.rows(x), (dt_bias, A_log, *due, dx, shares), (low, high), wanted)
    d_bias, d_rate = shares.sum(0)
    d_A = x.new_empty(0) if A_log is None else d_rate.view(A_log.shape[0], -1).sum(1).to(A_log.dtype)
    return dx, d_bias.to(dt_bias.dtype), d_A


_operator = custom_op(
    "decay_gate_triton",
    Signature(
        "Tensor x, Tensor dt_bias, Tensor? A_log, float low, float high, bool keep_step", ("x", "dt_bias", "A_log")
    ),
    _forward,
    _backward,
    _shapes,
)


def run(
    x: Tensor, dt_bias: Tensor, A_log: Tensor | None, low: float, high: float, keep_step: bool
) -> tuple[Tensor, Tensor]:
    """`decay_gate` on tensors of float32 or bfloat16 on a GPU."""
    graph = kernels.wants_graph(x, dt_bias, A_log)
    found: tuple[Tensor, Tensor] = (_operator if graph else _forward)(x, dt_bias, A_log, low, high, keep_step)
    return found
