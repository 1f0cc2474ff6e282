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
}


def preset(name: str) -> ModelConfig:
    """The config of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: no model is called '{name}'; {nearest(name, PRESETS)}")
    return ModelConfig.from_dict(PRESETS[name])
