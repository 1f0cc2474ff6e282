"""The public operator `swiglu`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import gpu, kernels
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.swiglu import native
from interlace.ops.swiglu.plain import plain

BACKENDS = (
    gpu.backend("swiglu", kernels.refuses, lambda x: (x.dtype, (x.shape[1] // 2,))),
    kernels.backend(lambda: native.run),
    Backend("plain", lambda: plain, slow_on=(ANY,)),
)


def swiglu(gate_up: Float[Tensor, "rows DD"], *, backend: str = "auto") -> Float[Tensor, "rows D"]:
    """SiLU(gate) up, where each row of gate_up [rows, 2 D] holds gate and up side by side; [rows, D].

    Raises:
        ShapeError: gate_up is not [rows, 2 D].

    Source: arXiv 2002.05202.
    """
    if gate_up.ndim != 2 or gate_up.shape[1] % 2 or not gate_up.shape[1]:
        raise ShapeError(f"swiglu: gate_up has shape {list(gate_up.shape)}, but it must be [rows, 2 D]")
    return choose("swiglu", BACKENDS, backend, gate_up)(gate_up)
