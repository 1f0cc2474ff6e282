"""The kinds of layer a pattern may name: one line each."""

from __future__ import annotations

from interlace.layers.attention import AttentionConfig
from interlace.layers.base import LayerConfig
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.layers.mlp import MLPConfig
from interlace.layers.moe import MoEConfig

KINDS: dict[str, type[LayerConfig]] = {
    "attention": AttentionConfig,
    "gated_delta": GatedDeltaConfig,
    "mlp": MLPConfig,
    "moe": MoEConfig,
}
