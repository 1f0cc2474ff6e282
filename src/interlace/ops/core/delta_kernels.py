"""What the delta rules share around their Triton kernels: sizes of tiles, operands as kernels read them, launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import gpu, tables
from interlace.ops.core.gpu import power
from interlace.ops.core.operands import Recurrence


class Scan(NamedTuple):
    """The configuration of the kernels that go from chunk to chunk.

    Attributes:
        chunk: tokens.
        values: value columns of a program.
        warps, stages: of a program, and of the loops that load ahead.
    """

    chunk: int
    values: int
    warps: int
    stages: int


def pieces(key_dim: int) -> tuple[int, int]:
    """Return the two powers of two, the second perhaps 0, in which K channels are read: 96 as 64 + 32."""
    whole = power(key_dim)
    rest = power(key_dim - whole // 2)
    return (whole, 0) if whole <= 64 and rest >= whole // 2 else (whole // 2, rest)


class Plan:
    """One call's sizes, configuration and tables."""

    def __init__(self, x: Recurrence, scan: Scan) -> None:
        """x: tensors on one device, in one dtype, as the kernels read them."""
        assert x.offsets is not None
        self.x, self.device, self.scan = x, x.query.device, scan
        _, self.H, self.K = x.query.shape
        self.total, self.G, self.V = x.value.shape
        self.dtype = x.value.dtype
        self.tables = tables.chunks(x.offsets, self.device, scan.chunk, tables.PERIOD)
        self.lanes, self.blocks = x.rows * self.G, -(-self.V // scan.values)
        K1, K2 = pieces(self.K)
        self.sizes = {"K": self.K, "K1": K1, "K2": K2, "C": scan.chunk}
        self.scans = {**self.sizes, "V": self.V, "BV": scan.values, "STATE": x.state is not None}

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor with nothing in it."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def launch(self, kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Run a kernel in the scans' warps and stages."""
        gpu.launch(kernel, programs, arguments, constants, self.scan.warps, self.scan.stages)


def prepared(x: Recurrence) -> Recurrence:
    """Return the call as the kernels read it: q, k and v contiguous in one dtype, and a contiguous float32 state."""
    dtype = x.value.dtype
    query, key, value = (y.to(dtype).contiguous() for y in (x.query, x.key, x.value))
    state = None if x.state is None else x.state.to(torch.float32).contiguous()
    gates = (x.log_decay.contiguous(), x.strength.contiguous())
    return x._replace(
        query=query, key=key, value=value, log_decay=gates[0], strength=gates[1], state=state, normalise=False
    )
