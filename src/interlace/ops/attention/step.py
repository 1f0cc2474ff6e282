"""One decoded token of each sequence, whose positions are on the device: nothing here looks at one on the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from interlace.ops.attention.native import look_back
from interlace.ops.core import gpu, kernels
from interlace.ops.core.attention_state import AttentionRows, AttentionState

LARGEST_GROUP = 32  # query heads of a key head, which one program holds


class Step(NamedTuple):
    """One step of `attention`.

    Attributes:
        query: [N, H, K].
        key: [N, J, K], the new tokens' own.
        value: [N, J, V], the same; or V, where values are the first V elements of the keys.
        state: a view on the device, whose buffers hold zeros where they hold no token and are not for the CPU's kernel.
        scale: multiplies the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor | int
    state: AttentionState
    scale: float

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.query.device


def refuses(x: Step) -> str | None:
    """Why the kernels cannot serve a step, or None."""
    if len({t.dtype for t in (x.query, x.key, x.value, x.state) if not isinstance(t, int)}) > 1:
        return "query, key, value and the state differ in dtype"
    if not x.state.is_contiguous:
        return "the buffers of the state have gaps"
    return kernels.refuses(x.query)


def refuses_gpu(x: Step) -> str | None:
    """Why the kernels for a GPU cannot serve a step, or None."""
    if isinstance(x.value, int):
        return "values lie in the keys"
    if max(x.key.shape[2], x.value.shape[2]) > gpu.LARGEST_HEAD:
        return f"heads of {x.key.shape[2]} and {x.value.shape[2]} are larger than {gpu.LARGEST_HEAD}"
    if (group := x.query.shape[1] // x.key.shape[1]) > LARGEST_GROUP:
        return f"{group} query heads read one key head, and the kernel takes {LARGEST_GROUP}"
    return refuses(x)


def selects(x: Step) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return what selects a kernel."""
    assert not isinstance(x.value, int)
    return x.query.dtype, (x.key.shape[2], x.value.shape[2], x.query.shape[1] // x.key.shape[1])


def native(x: Step) -> Tensor:
    """Keep the tokens and attend, by the CPU's kernel; [N, H, V]."""
    assert x.state.places is not None
    return look_back(x.query, x.key, x.value, x.state.caches(), x.state.places, x.scale, x.state.window)


def masked(x: Step) -> Tensor:
    """Write the tokens into the buffers and attend over all slots, those that hold none masked; [N, H, V]."""
    assert not isinstance(x.state, AttentionRows), "rows are of the CPU's kernel"
    if isinstance(x.value, int):
        x.state.put(x.key, x.key[..., :0])
        return attend(x.query, x.state.keys, x.state.keys[..., : x.value], x.state.visible(), x.scale)
    x.state.put(x.key, x.value)
    return attend(x.query, x.state.keys, x.state.values, x.state.visible(), x.scale)


def attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Attend from query [N, H, K] to keys [N, slots, J, K] and values [N, slots, J, V] where visible [N, slots]."""
    grouped = query.unflatten(1, (keys.shape[2], -1))
    lanes = (grouped, keys.transpose(1, 2), values.transpose(1, 2))
    out = scaled_dot_product_attention(*lanes, attn_mask=visible[:, None, None], scale=scale)
    return out.flatten(1, 2)
