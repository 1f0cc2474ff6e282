"""The selective scan by the compiled kernel; if gradients are wanted, the backward is that of `blocked`."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.core import kernels
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.kernels import DTYPES, address, floats, rows
from interlace.ops.selective_scan import blocked
from interlace.ops.selective_scan.operands import GRADIENTS, INPUTS, Scan, shapes


def immediately(s: Scan) -> tuple[Tensor, Tensor]:
    """Call the kernel without autograd."""
    x, B, C = (rows(y.to(s.x.dtype)) for y in (s.x, s.B, s.C))
    step, A = floats(s.step), floats(s.A)
    before = None if s.state is None else floats(s.state)
    one = s.time == 1  # every token is a sequence: there are no borders to look up
    count = x.shape[0] if one else s.offsets.shape[0] - 1
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if before is not None and one and kernels.owned(before):
        final = before
    else:
        final = x.new_empty(count, *A.shape, dtype=torch.float32)
    tensors = (x, step, A, B, C, None if one else kernels.borders(s.offsets), before)
    sizes = [count, *A.shape, *(y.stride(0) for y in (x, B, C)), DTYPES[x.dtype], torch.get_num_threads()]
    kernels.module().selective_scan([address(y) for y in tensors], sizes, address(out), address(final))
    return out, final


_operator = custom_op(
    "selective_scan_native",
    Signature(INPUTS, GRADIENTS, device="cpu"),
    lambda *operands: immediately(Scan(*operands)),
    blocked.backward,
    shapes,
)


def run(s: Scan) -> tuple[Tensor, Tensor]:
    """`selective_scan` on CPU tensors of float32 or bfloat16."""
    if kernels.wants_graph(s.x, s.step, s.A, s.B, s.C, s.state):
        return _operator(*s)
    return immediately(s)
