"""One decoded token of each sequence by Triton kernels; README.md beside this file says how they share the work."""

from __future__ import annotations

import torch
from torch import Tensor

from interlace.ops.attention import triton_kernels
from interlace.ops.attention.step import Step
from interlace.ops.core import gpu
from interlace.ops.core.gpu import power

SPAN = 256  # slots of a program, and of a partial result: 2 (K + V) x 256 bytes of bfloat16 are read for 4 V written
TILE = 8192  # elements of a tile of keys or values
MANY = 16  # stretches that are joined at a time
WARPS, STAGES = 4, 2


def run(x: Step) -> Tensor:
    """Write the tokens into the state's buffers and attend to what they hold; [N, H, V]."""
    assert not isinstance(x.value, int)
    query, key, value = (gpu.rows(y) for y in (x.query, x.key, x.value))
    state, (N, H, K), (_, J, V) = x.state, query.shape, value.shape
    assert state.places is not None
    capacity, group = state.keys.shape[1], H // J
    stretches = -(-capacity // SPAN)
    whole = stretches == 1
    out = query.new_empty(N, H, V)
    parts, sums = (
        None if whole else torch.empty(N * J * stretches * group, size, dtype=torch.float32, device=x.device)
        for size in (V, 2)
    )
    widest = max(power(K), power(V))
    block = min(SPAN, max(16, (TILE if query.dtype == torch.bfloat16 else TILE // 4) // widest))
    sizes = {"J": J, "GROUP": group, "V": V, "VP": power(V), "SPAN": SPAN, "WINDOW": state.window or 0}
    rows = (query.stride(0), key.stride(0), value.stride(0))
    gpu.launch(
        triton_kernels.attend,
        N * J * stretches,
        (
            query,
            key,
            value,
            state.keys,
            state.values,
            state.places,
            out,
            parts,
            sums,
            *rows,
            capacity,
            stretches,
            x.scale,
        ),
        {**sizes, "K": K, "KP": power(K), "ROWS": power(group), "BLOCK": block, "WHOLE": whole},
        WARPS,
        STAGES,
    )
    if not whole:
        gpu.launch(
            triton_kernels.join, N * H, (parts, sums, state.places, out, stretches), {**sizes, "MANY": MANY}, WARPS
        )
    return out
