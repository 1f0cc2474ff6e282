"""The kernels of flash-linear-attention as a backend that a user may name; "auto" never takes them.

They come with `pip install interlace[cuda]`. Their backward refuses, by itself, the versions of Triton that compile it
wrongly on Hopper. Source: github.com/fla-org/flash-linear-attention, fla-core 0.6.0.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import BackendUnavailable
from interlace.ops.core import gpu, kernels, tables
from interlace.ops.core.backends import Backend
from interlace.ops.core.operands import Recurrence


def backend(module: str, function: str) -> Backend:
    """Return the row "fla" of a rule, whose function is `function` of `module`."""

    def load() -> Callable[[Recurrence], tuple[Tensor, Tensor]]:
        try:
            found = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise BackendUnavailable(f"{module} cannot be imported ({error}); pip install 'interlace[cuda]'") from None
        return lambda x: run(found, x)

    return Backend("fla", load, ("cuda",), _refuses, when=lambda *_: False)


def _refuses(x: Recurrence) -> str | None:
    if x.query.shape[-1] > gpu.LARGEST_HEAD:
        return f"it takes keys of at most {gpu.LARGEST_HEAD} channels, not {x.query.shape[-1]}"
    return kernels.refuses(*x.tensors)


def run(function: Callable[..., Any], x: Recurrence) -> tuple[Tensor, Tensor]:
    """Call one of its functions on a single row of tokens, whose sequences it is told."""
    dtype, offsets = x.value.dtype, x.bordered().offsets
    assert offsets is not None
    query, key, value = (y.to(dtype).unsqueeze(0) for y in (x.query, x.key, x.value))
    out, final = function(
        q=query,
        k=key,
        v=value,
        g=x.log_decay.unsqueeze(0),
        beta=x.strength.unsqueeze(0),
        scale=x.scale,
        initial_state=None if x.state is None else x.state.to(torch.float32),
        output_final_state=True,
        use_qk_l2norm_in_kernel=x.normalise,
        cu_seqlens=tables.borders(offsets, x.device).long(),
        cu_seqlens_cpu=offsets.long(),
    )
    return out.squeeze(0), final
