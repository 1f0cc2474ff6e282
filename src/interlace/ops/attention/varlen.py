"""Attention in sequences without a past by torch's fused kernel for ragged sequences, on a GPU.

`torch.nn.attention.varlen` has grown from release to release: what this torch's signature lacks is done around it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from interlace.base.errors import BackendUnavailable
from interlace.base.segments import Segments
from interlace.ops.core import gpu, self_check, tables
from interlace.ops.core.cases import Case
from interlace.ops.core.custom_op import define
from interlace.ops.core.self_check import Probe

FOLD = 8  # elements: the kernel loads 16 bytes at a time


def load() -> Callable[..., Tensor]:
    """Return torch's function.

    Raises:
        BackendUnavailable: this torch has none that takes a scale.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise BackendUnavailable(f"torch {torch.__version__} has no torch.nn.attention.varlen") from None
    function: Any = varlen_attn
    if "scale" not in takes(function):
        raise BackendUnavailable(f"torch.nn.attention.varlen of torch {torch.__version__} takes no scale")
    return cast("Callable[..., Tensor]", function)


def takes(function: Callable[..., Tensor]) -> frozenset[str]:
    """Return the names of what a function takes."""
    return (_names if torch.compiler.is_compiling() else _known)(function)  # a trace goes through caches, and warns


def _names(function: Callable[..., Tensor]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


_known = functools.cache(_names)


def refuses(query: Tensor, key: Tensor, value: Tensor, state: Any, window: int | None) -> str | None:
    """Why the kernel cannot serve a call, or None; it is checked once for each size of head."""
    if state is not None:
        return "the sequences have a past"
    if {query.dtype, key.dtype, value.dtype} != {torch.bfloat16}:
        return f"it takes bfloat16, not {str(query.dtype).removeprefix('torch.')}"
    if (size := max(query.shape[2], value.shape[2])) > gpu.LARGEST_HEAD:
        return f"heads of {size} are larger than {gpu.LARGEST_HEAD}"
    if window is not None and "window_size" not in takes(load()):
        return f"torch.nn.attention.varlen of torch {torch.__version__} has no window"
    if query.device.type not in gpu.CHECKED:
        return None
    sizes = (query.shape[2], value.shape[2], query.shape[1] // key.shape[1])
    probe = Probe("attention varlen", query.dtype, sizes, partial(_case, *sizes), "varlen")
    return self_check.objection(probe, query.device)


def _case(*sizes: int) -> Case:
    case: Case = import_module("interlace.ops.attention.cases").fresh_probe(*sizes)
    return case


def fresh(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    """Attend in sequences without a past: [total, H, K] to [total, H, V]; differentiable."""
    function, width = load(), value.shape[2]
    known = takes(function)
    if "enable_gqa" not in known:
        group = query.shape[1] // key.shape[1]
        key, value = (x if group == 1 else x.repeat_interleave(group, dim=1) for x in (key, value))
    size = -(-max(query.shape[2], width) // FOLD) * FOLD  # the kernel has one size of head for all three
    query, key, value = (fitting(x, size) for x in (query, key, value))
    longest = segments.time or segments.bound or max(segments.lengths)
    offsets = borders(segments.offsets, query)
    out = function(query, key, value, offsets, offsets, longest, longest, **options(known, scale, window, longest))
    return out if size == width else out[..., :width]


def options(known: frozenset[str], scale: float, window: int | None, longest: int) -> dict[str, Any]:
    """Return the named arguments: a causal mask, and a window, which counts the tokens before a query's own."""
    named: dict[str, Any] = {"scale": scale}
    if "window_size" in known:
        named["window_size"] = (-1, 0) if window is None or window >= longest else (window - 1, 0)
    if "is_causal" in known:
        named["is_causal"] = True
    if "enable_gqa" in known:
        named["enable_gqa"] = True
    return named


def fitting(x: Tensor, size: int) -> Tensor:
    """Return x [total, heads, size] with zeros in the columns that it lacks, and rows that lie as the kernel reads."""
    if x.shape[2] < size:
        return pad(x, (0, size - x.shape[2]))
    if torch.compiler.is_compiling():  # which does not know where a tensor begins
        return x.contiguous()
    aligned = x.stride(2) == 1 and not (x.stride(0) % FOLD or x.stride(1) % FOLD or x.storage_offset() % FOLD)
    return x if aligned else x.contiguous()


def _borders(offsets: Tensor, like: Tensor) -> Tensor:
    return tables.borders(offsets, like.device).clone()  # a compiled graph may write over what an operator returned


_opaque_borders = define(
    "borders",
    "(Tensor offsets, Tensor like) -> Tensor",
    _borders,
    lambda offsets, like: torch.empty_like(offsets, device=like.device),
)


def borders(offsets: Tensor, like: Tensor) -> Tensor:
    """Return the borders of sequences, int32 [N + 1], on the device of `like`."""
    if torch.compiler.is_compiling():
        found: Tensor = _opaque_borders(offsets, like)
        return found
    return tables.borders(offsets, like.device)
