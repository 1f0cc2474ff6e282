"""Small models by name: every law runs on each of them."""

from __future__ import annotations

from typing import Any

from interlace.base.errors import ConfigError, nearest
from interlace.model.config import ModelConfig

_TINY: dict[str, Any] = {"width": 24, "depth": 4, "vocabulary": 61, "mlp": {"width": 40}}
_DELTA = {"heads": 2, "value_heads": 4, "key_dim": 6, "value_dim": 10}
_HYBRID = ["gated_delta", "gated_delta", "gated_delta", "attention"]

PRESETS: dict[str, dict[str, Any]] = {
    "tiny-hybrid": {
        **_TINY,
        "pattern": _HYBRID,
        "gated_delta": _DELTA,
        "attention": {"heads": 4, "kv_heads": 2, "position": "none", "norm": "output"},
    },
    "tiny-hybrid-rope": {
        **_TINY,
        "pattern": ["gated_delta", "attention"],
        "gated_delta": {**_DELTA, "value_heads": 2, "negative_eigenvalues": False},
        "attention": {"heads": 4, "norm": "output"},
    },
    "tiny-transformer": {**_TINY, "pattern": ["attention"], "attention": {"heads": 4, "norm": "output"}},
    "tiny-sliding": {
        **_TINY,
        "pattern": ["sliding", "sliding", "attention"],
        "tied_embeddings": True,
        "attention": {"heads": 4, "norm": "output", "qk_norm": "head", "kv_heads": 1},
        "sliding": {"type": "attention", "heads": 4, "window": 5, "norm": "output"},
    },
    "tiny-recurrent": {**_TINY, "pattern": ["gated_delta"], "gated_delta": _DELTA},
    "tiny-bare": {
        **_TINY,
        "pattern": ["gated_delta", "attention"],
        "gated_delta": {**_DELTA, "mlp": False, "norm": "output"},
        "attention": {"heads": 3, "head_dim": 10, "qk_norm": "none", "bias": True, "norm": "input"},
    },
    "tiny-gated-attention": {
        **_TINY,
        "zero_centred_norms": True,
        "pattern": ["gated_delta", "attention"],
        "gated_delta": {**_DELTA, "negative_eigenvalues": False, "mlp": "moe"},
        "attention": {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 8,
            "qk_norm": "head",
            "gate": True,
            "rope": {"fraction": 0.5},
            "mlp": "moe",
        },
        "moe": {"experts": 5, "chosen": 2, "width": 12, "shared_width": 10, "shared_gate": True, "wide_router": False},
    },
    "tiny-kimi": {
        **_TINY,
        "pattern": ["dense", "kimi_delta", "latent_attention", "kimi_delta"],
        "dense": {"type": "kimi_delta", "heads": 3, "key_dim": 6, "value_dim": 10},
        "kimi_delta": {"heads": 3, "key_dim": 6, "value_dim": 10, "decay_rank": 5, "gate_rank": 4, "mlp": "moe"},
        "latent_attention": {
            "heads": 3,
            "latent": 14,
            "key_dim": 6,
            "shared_dim": 4,
            "value_dim": 7,
            "query_latent": 9,
            "mlp": "moe",
        },
        "moe": {
            "experts": 6,
            "chosen": 2,
            "width": 12,
            "scores": "sigmoid",
            "scale": 2.5,
            "correction": True,
            "groups": 3,
            "chosen_groups": 2,
            "shared_width": 10,
        },
    },
    "tiny-nemotron": {
        **_TINY,
        "depth": 5,
        "pattern": ["mamba2", "moe", "attention", "mlp", "mamba2"],
        "mamba2": {"heads": 6, "head_dim": 8, "groups": 2, "state_dim": 10, "mlp": False},
        "attention": {"heads": 3, "position": "none", "qk_norm": "none", "mlp": False},
        "mlp": {"width": 40, "activation": "relu2", "bias": True},
        "moe": {
            "experts": 4,
            "chosen": 2,
            "width": 12,
            "activation": "relu2",
            "scores": "sigmoid",
            "correction": True,
            "shared_width": 10,
            "latent": 9,
        },
    },
    "tiny-granite": {
        **_TINY,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "logits_divisor": 2.0,
        "pattern": ["mamba2", "attention"],
        "mamba2": {"heads": 6, "head_dim": 8, "state_dim": 10, "max_step": 0.5, "bias": True},
        "attention": {"heads": 3, "position": "none", "qk_norm": "none", "scale": 0.2},
    },
    "tiny-mamba": {
        **_TINY,
        "float32_residual": True,
        "pattern": ["mamba"],
        "mamba": {"inner": 36, "state_dim": 5, "step_rank": 3, "bias": True, "mlp": False},
    },
    "tiny-hyena": {**_TINY, "pattern": ["hyena", "attention"], "hyena": {"channels": 20}, "attention": {"heads": 3}},
    "tiny-lstm": {**_TINY, "depth": 2, "pattern": ["lstm"], "lstm": {"hidden": 18}},
}


def preset(name: str) -> ModelConfig:
    """Return the config of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: no model is called '{name}'; {nearest(name, PRESETS)}")
    return ModelConfig.from_dict(PRESETS[name])
