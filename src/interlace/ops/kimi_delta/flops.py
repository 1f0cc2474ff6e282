"""Count the floating-point operations of the chunked form; a test counts them in the running code."""

from __future__ import annotations

from interlace.ops.core.delta_scan import flops_per_token_and_head as scalar_decay
from interlace.ops.kimi_delta.chunked import LEAF, KimiDeltaGrid


def flops_per_token_and_head(key_dim: int, value_dim: int, chunk: int = KimiDeltaGrid.CHUNK) -> float:
    """Return forward FLOPs of matrix products per token and value head, a multiply-add counting 2.

    They are those of the gated delta rule, except for (Q; K) K^T. Of its full square only the blocks below the diagonal
    are products, at each halving of the chunk. The rest is formed pair by pair and not counted, as it is elementwise.
    """
    blocks, size = 0.0, chunk
    while size > LEAF:
        blocks += (chunk / size) * 2 * (2 * (size / 2) ** 2 * key_dim)
        size //= 2
    return scalar_decay(key_dim, value_dim, 1, chunk) - 4 * chunk * key_dim + blocks / chunk
