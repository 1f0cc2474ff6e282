"""The families, in the order in which saving tries them: the first that can express a model takes it."""

from __future__ import annotations

from interlace.checkpoint.families import (
    granitemoehybrid,
    kimi_linear,
    llama,
    mamba,
    mamba2,
    nemotron_h,
    olmo2,
    olmo3,
    olmo_hybrid,
    qwen3,
    qwen3_5,
    qwen3_next,
)
from interlace.checkpoint.families import own as native
from interlace.checkpoint.family import Family

FAMILIES: tuple[Family, ...] = (
    olmo_hybrid.FAMILY,
    olmo3.FAMILY,
    olmo2.FAMILY,
    llama.FAMILY,
    qwen3.FAMILY,
    qwen3_5.DENSE,
    qwen3_5.SPARSE,
    qwen3_next.FAMILY,
    kimi_linear.FAMILY,
    mamba2.FAMILY,  # before nemotron_h, which transformers 5.23 cannot run without attention
    nemotron_h.FAMILY,
    granitemoehybrid.FAMILY,
    mamba.FAMILY,
    native.FAMILY,
)
