"""What recurrent operators ask of their arguments."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments


def check_recurrence(
    operator: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gates: Mapping[str, Tensor],
    segments: Segments,
    state: Tensor | None,
    per_channel: str = "",
) -> None:
    """Raise ShapeError, naming the argument, unless these fit together.

    Args:
        operator: whose arguments they are.
        query, key: [total, H, K].
        value: [total, G, V], G a multiple of H.
        gates: by name, [total, G]; the one called `per_channel` [total, G, K]; "log_decay" is at most 0.
        segments: cover total tokens.
        state: [N, G, K, V] or None.
        per_channel: the gate with a value for each channel of the key.
    """

    def fail(name: str, tensor: Tensor, rule: str) -> None:
        raise ShapeError(f"{operator}: {name} has shape {list(tensor.shape)}, but {rule}")

    if query.ndim != 3:
        fail("query", query, "it must be [total, H, K]")
    total, H, K = query.shape
    if key.shape != query.shape:
        fail("key", key, f"it must equal query's {list(query.shape)}")
    if value.ndim != 3 or value.shape[0] != total or (value.shape[1] % H if H else 1):
        fail("value", value, f"it must be [{total}, G, V] with G a multiple of H = {H}")
    G, V = value.shape[1:]
    if min(H, K, G, V, total) < 1:
        fail("value", value, f"with query's {list(query.shape)} it leaves nothing to compute")
    for name, gate in gates.items():
        shape, letters = ((total, G, K), "total, G, K") if name == per_channel else ((total, G), "total, G")
        if gate.shape != shape:
            fail(name, gate, f"it must be [{letters}] = {list(shape)}")
    if segments.total != total:
        raise ShapeError(f"{operator}: segments cover {segments.total} tokens, but query has {total}")
    if state is not None and state.shape != (segments.count, G, K, V):
        fail("state", state, f"it must be [N, G, K, V] = [{segments.count}, {G}, {K}, {V}]")
    decay = gates["log_decay"]
    if not torch.compiler.is_compiling() and bool((decay > 0).any()):
        raise ShapeError(
            f"{operator}: log_decay must be at most 0 (the state would grow), got {float(decay.max()):.4g}; "
            "pass the logarithm of the decay"
        )
