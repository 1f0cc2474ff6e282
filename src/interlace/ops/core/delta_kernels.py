"""What the delta rules share around their Triton kernels: sizes of tiles, operands as kernels read them, launches.

Where few sequences and heads leave most of a GPU idle, sequences are cut into stretches, and all stretches are gone
through at once: first to learn what each makes of a state, then, with the states at its borders known, for the outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.ops.core import delta_split, gpu, head_kernels, tables
from interlace.ops.core.gpu import power
from interlace.ops.core.operands import Recurrence

FEW = 64  # programs of a scan: with fewer, sequences are cut
PROGRAMS = 256  # that are aimed at then


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


def period(x: Recurrence, chunk: int, values: int) -> int:
    """Return how many chunks a stretch of the scan has, from shapes alone; 0 where sequences are not cut.

    Heads of more than 128 channels never are, nor float32 but in the interpreter: products of whole states spill there.

    Args:
        x: the call.
        chunk: tokens of a chunk.
        values: value columns of a program.
    """
    total, G, V = x.value.shape
    chunks, programs = total // chunk, G * -(-V // values)
    found = -(-chunks * programs // (PROGRAMS * tables.PERIOD)) * tables.PERIOD
    spills = x.key.shape[2] > 128 or (x.value.dtype == torch.float32 and not gpu.INTERPRETED)
    return 0 if spills or x.rows * programs >= FEW or chunks < 2 * found else found


def transitions(x: Recurrence, chunk: int, values: int) -> Tensor:
    """Return room for what each stretch of the scan does to a state: [borders or more, G, K, K] in float32."""
    (total, G, _), K, split = x.value.shape, x.key.shape[2], period(x, chunk, values)
    return x.value.new_empty(total // (chunk * split) if split else 0, G, K, K, dtype=torch.float32)


class Plan:
    """One call's sizes, configuration and tables.

    Attributes:
        cut: the tables of the scan's stretches; a stretch is all of a sequence where none is cut.
        borders: how many borders of these stretches there are.
    """

    def __init__(self, x: Recurrence, scan: Scan) -> None:
        """x: tensors on one device, in one dtype, as the kernels read them."""
        assert x.offsets is not None
        self.x, self.device, self.scan = x, x.query.device, scan
        _, self.H, self.K = x.query.shape
        self.total, self.G, self.V = x.value.shape
        self.dtype = x.value.dtype
        self.tables = tables.chunks(x.offsets, self.device, scan.chunk, tables.PERIOD)
        self.blocks = -(-self.V // scan.values)
        stretch = period(x, scan.chunk, scan.values) or tables.WHOLE
        self.cut = tables.chunks(x.offsets, self.device, scan.chunk, stretch)
        self.borders = self.cut.stretches - x.rows
        K1, K2 = pieces(self.K)
        self.sizes = {"K": self.K, "K1": K1, "K2": K2, "C": scan.chunk}
        self.scans = {**self.sizes, "V": self.V, "BV": scan.values, "STATE": x.state is not None}

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor with nothing in it."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def or_zeros(self, state: Tensor | None) -> Tensor:
        """Return states, or zeros: so scans that are cut have one kernel, with and without states."""
        shape = (self.x.rows, self.G, self.K, self.V)
        return torch.zeros(shape, dtype=torch.float32, device=self.device) if state is None else state

    def new_borders(self) -> Tensor:
        """Return room for a state at each border of two stretches, [borders, G, V, K] in float32."""
        return self.new(self.borders, self.G, self.V, self.K, dtype=torch.float32)

    def carry(self, border: Tensor, transition: Tensor, *, reverse: bool) -> None:
        """Turn what each stretch adds into the states, or their gradients, at borders; see `delta_split.carry`."""
        columns = min(32, power(self.V))
        gpu.launch(
            delta_split.carry,
            self.x.rows * self.G * -(-self.V // columns),
            (border, transition, self.cut.sequences, self.G),
            {"K": self.K, "V": self.V, "KP": power(self.K), "BK": min(64, power(self.K)), "BV": columns}
            | {"REVERSE": reverse, "NARROW": self.dtype == torch.bfloat16},
            4,
            1,  # stage: a loop that loads ahead would read states before they are written
        )

    def collect(self, x: Tensor, d_heads: Tensor, dx: Tensor, *, normalise: bool) -> None:
        """Fill the gradient of queries or keys x [total, H, K] from [total, G, K]; see `head_kernels.collect`."""
        constants = head_tiles(self.K)
        gpu.launch(
            head_kernels.collect,
            -(-self.total // constants["BT"]) * self.H,
            (x, d_heads, dx, x.stride(0), dx.stride(0), self.H, self.G, self.total),
            constants | {"NORMALISE": normalise},
            4,
        )

    def launch(self, kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        """Run a kernel in the scans' warps and stages."""
        gpu.launch(kernel, programs, arguments, constants, self.scan.warps, self.scan.stages)


def head_tiles(key_dim: int) -> dict[str, int]:
    """Return the constants of the kernels that take some tokens of one head."""
    wide = power(key_dim)
    return {"K": key_dim, "WIDE": wide, "BT": max(1, 2048 // wide)}


def unit(x: Tensor) -> Tensor:
    """Return x / |x| [total, H, K], contiguous."""
    (total, H, K), constants, x = x.shape, head_tiles(x.shape[2]), gpu.rows(x)
    out = x.new_empty(total, H, K)
    programs = -(-total // constants["BT"]) * H
    gpu.launch(head_kernels.unit_heads, programs, (x, out, x.stride(0), H, total), constants, 4)
    return out


def given_back(d_state: Tensor, state: Tensor | None) -> Tensor:
    """Return the gradient of states in their dtype; empty if there are none."""
    return d_state if state is None else d_state.to(state.dtype)


def prepared(x: Recurrence) -> Recurrence:
    """Return the call as the kernels read it: q, k and v contiguous in one dtype, and a contiguous float32 state.

    Queries and keys are unit vectors afterwards, if the call asks for that.
    """
    dtype = x.value.dtype
    query, key, value = (y.to(dtype) for y in (x.query, x.key, x.value))
    query, key = (unit(y) if x.normalise else y.contiguous() for y in (query, key))
    value = value.contiguous()
    state = None if x.state is None else x.state.to(torch.float32).contiguous()
    gates = (x.log_decay.contiguous(), x.strength.contiguous())
    return x._replace(
        query=query, key=key, value=value, log_decay=gates[0], strength=gates[1], state=state, normalise=False
    )
