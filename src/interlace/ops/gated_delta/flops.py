"""How many floating-point operations the chunked form does; a test counts them in the running code."""

from __future__ import annotations

from interlace.ops.gated_delta.chunked import BLOCK, CHUNK


def flops_per_token_and_head(key_dim: int, value_dim: int, group: int = 1, chunk: int = CHUNK) -> float:
    """Forward FLOPs of matrix products per token and value head, a multiply-add counting 2; README.md lists the terms.

    `group` value heads share the products of keys with queries and keys.
    """
    K, V, C = key_dim, value_dim, chunk
    inverse = 0.0
    size = C
    while size > BLOCK:  # merging two halves of `size` rows: two products of half-sized blocks
        inverse += (C / size) * 2 * 2 * (size / 2) ** 3
        size //= 2
    per_chunk = 2 * (2 * C * C * K) / group  # (Q; K) K^T
    per_chunk += inverse
    per_chunk += 2 * C * C * (K + V)  # T (beta V | beta K)
    per_chunk += 2 * (2 * C) * K * V  # (W; Q) S
    per_chunk += 2 * C * K * V  # K^T V'
    per_chunk += 2 * C * C * V  # M V'
    return per_chunk / C
