"""Count the floating-point operations of the chunked form; a test counts them in the running code."""

from __future__ import annotations

from interlace.ops.state_space.chunked import StateSpaceGrid


def flops_per_token_and_head(key_dim: int, value_dim: int, group: int = 1, chunk: int = StateSpaceGrid.CHUNK) -> float:
    """Forward FLOPs of matrix products per token and value head, a multiply-add counting 2.

    `group` value heads share the products of keys with queries.
    """
    return 2 * chunk * key_dim / group + 2 * chunk * value_dim + 4 * key_dim * value_dim
