"""The public operator `rope`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.ops.core import kernels
from interlace.ops.core.backends import Backend, choose
from interlace.ops.rope import native
from interlace.ops.rope.plain import plain

BACKENDS = (
    kernels.backend(lambda: native.run),
    Backend("plain", lambda: plain, slow_on=("cpu",)),
)


def rope(
    x: Float[Tensor, "total heads dim"],
    cos: Float[Tensor, "total turning"],
    sin: Float[Tensor, "total turning"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "total heads dim"]:
    """Turn each head of x [total, heads, dim] by the angles of its token; float32 arithmetic at least.

    Args:
        x: queries or keys, float32, bfloat16 or float64.
        cos, sin: float32 [total, turning], of the angles; both halves of a row hold the same ones. The first
            `turning` elements of each head turn and the rest stay. They have no gradient.
        backend: "native" or "plain"; "auto" for the fastest that serves.

    Raises:
        ShapeError: `turning` is odd or more than dim, or there are not as many rows as tokens.

    Source: arXiv 2104.09864.
    """
    total, turning = cos.shape
    if sin.shape != cos.shape or total != x.shape[0] or turning % 2 or turning > x.shape[-1]:
        raise ShapeError(
            f"rope: cos and sin have shapes {list(cos.shape)} and {list(sin.shape)}, but for x {list(x.shape)} they "
            "must be [total, turning], with turning even and at most dim"
        )
    return choose("rope", BACKENDS, backend, x)(x, cos, sin)
