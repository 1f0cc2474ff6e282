"""The kinds of layer a pattern may name: one line each."""

from __future__ import annotations

from interlace.layers.attention import AttentionConfig
from interlace.layers.base import LayerConfig
from interlace.layers.gated_delta import GatedDeltaConfig
from interlace.layers.hyena import HyenaConfig
from interlace.layers.kimi_delta import KimiDeltaConfig
from interlace.layers.latent_attention import LatentAttentionConfig
from interlace.layers.lstm import LSTMConfig
from interlace.layers.mamba import MambaConfig
from interlace.layers.mamba2 import Mamba2Config
from interlace.layers.mlp import MLPConfig
from interlace.layers.moe import MoEConfig

KINDS: dict[str, type[LayerConfig]] = {
    "attention": AttentionConfig,
    "gated_delta": GatedDeltaConfig,
    "hyena": HyenaConfig,
    "kimi_delta": KimiDeltaConfig,
    "latent_attention": LatentAttentionConfig,
    "lstm": LSTMConfig,
    "mamba": MambaConfig,
    "mamba2": Mamba2Config,
    "mlp": MLPConfig,
    "moe": MoEConfig,
}
