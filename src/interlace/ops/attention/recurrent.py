"""The truth: softmax over the visible keys, one query token at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core.attention_state import AttentionState


def recurrent(
    query: Float[Tensor, "total H K"],
    key: Float[Tensor, "total J K"],
    value: Float[Tensor, "total J V"],
    segments: Segments,
    state: AttentionState | None,
    scale: float,
    window: int | None,
) -> Float[Tensor, "total H V"]:
    """out_t = softmax(scale q_t . k_s) v_s over the last `window` tokens s <= t of the same sequence."""
    group = query.shape[1] // key.shape[1]
    outputs = []
    for row, (first, end) in enumerate(segments.spans()):
        keys, values = (key[:0], value[:0]) if state is None else state.past(row)
        for t in range(first, end):
            keys, values = torch.cat((keys, key[t : t + 1])), torch.cat((values, value[t : t + 1]))
            seen = slice(-(window or len(keys)), None)
            k = keys[seen].repeat_interleave(group, dim=1)
            v = values[seen].repeat_interleave(group, dim=1)
            weights = torch.softmax(scale * torch.einsum("hk,shk->hs", query[t], k), dim=-1)
            outputs.append(torch.einsum("hs,shv->hv", weights, v))
    return torch.stack(outputs)
