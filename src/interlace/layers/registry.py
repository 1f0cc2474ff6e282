"""The kinds of layer a pattern may name: one line each."""

from __future__ import annotations

from interlace.layers.attention import AttentionConfig
from interlace.layers.base import MixerConfig
from interlace.layers.gated_delta import GatedDeltaConfig

KINDS: dict[str, type[MixerConfig]] = {
    "attention": AttentionConfig,
    "gated_delta": GatedDeltaConfig,
}
