"""The models that a study of tasks compares: one table of layers per name, at a width and depth that the suite sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, nearest
from interlace.base.schema import read_toml
from interlace.layers.base import MixerConfig
from interlace.layers.registry import KINDS
from interlace.model.config import ModelConfig


@dataclass(frozen=True)
class Shape:
    """The sizes that all models of a comparison share.

    Attributes:
        width, depth: of the model.
        heads: of every mixer; key and value heads are width / heads.
        convolution: taps of the short convolution of recurrent layers; 1 for none.
        mlp: hidden size of the feed-forward layer after each mixer; 0 for none.
    """

    width: int = 64
    depth: int = 2
    heads: int = 2
    convolution: int = 4
    mlp: int = 128

    def layer(self, kind: str, **more: Any) -> dict[str, Any]:
        """Return the table of a kind of mixer at this shape."""
        head = self.width // self.heads
        matrix = {"heads": self.heads, "key_dim": head, "value_dim": head, "convolution": self.convolution}
        tables: dict[str, dict[str, Any]] = {
            "attention": {"heads": self.heads, "qk_norm": "none"},  # bounded scores take long to learn to look up
            "gated_delta": matrix,
            "kimi_delta": matrix,
            "mamba2": {
                "heads": 2 * self.heads,
                "head_dim": head,
                "state_dim": head,
                "convolution": self.convolution,
            },
            "mamba": {"inner": 2 * self.width, "step_rank": max(1, self.width // 16), "convolution": self.convolution},
            "latent_attention": {
                "heads": self.heads,
                "latent": self.width // 2,
                "key_dim": head,
                "shared_dim": head // 2,
                "value_dim": head,
            },
            "hyena": {"channels": self.width},
            "lstm": {"hidden": self.width},
        }
        return {"type": kind, **tables[kind], **more, "mlp": bool(self.mlp)}


POSITIVE = {"negative_eigenvalues": False}
NOPE = {"position": "none"}
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "gated_delta": ("gated_delta", {"negative_eigenvalues": True}),
    "gated_delta_positive": ("gated_delta", POSITIVE),
    "kimi_delta": ("kimi_delta", {"negative_eigenvalues": True}),
    "kimi_delta_positive": ("kimi_delta", POSITIVE),
    "mamba2": ("mamba2", {}),
    "mamba": ("mamba", {}),
    "lstm": ("lstm", {}),
    "hyena": ("hyena", {}),
}
ATTENTION: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("attention", {"position": "rope"}),
    "transformer_nope": ("attention", NOPE),
    "latent_attention": ("latent_attention", {}),
}
HYBRIDS = {  # a recurrent arm, with attention without positions as the last of every four layers, or of fewer
    "hybrid": "gated_delta",
    "hybrid_positive": "gated_delta_positive",
    "hybrid_kimi": "kimi_delta",
    "hybrid_mamba2": "mamba2",
    "hybrid_mamba": "mamba",
    "hybrid_lstm": "lstm",
}
NAMES = (*ATTENTION, *RECURRENT, *HYBRIDS)


def config(name: str, shape: Shape, vocabulary: int) -> ModelConfig:
    """Return the model of an arm: a name of NAMES, or a TOML file with a [model] table (with its own width and depth).

    Raises:
        ConfigError: no such arm or file; the message names the nearest.
    """
    if name.endswith(".toml"):
        return _from_file(Path(name), vocabulary)
    common: dict[str, Any] = {"width": shape.width, "depth": shape.depth, "vocabulary": vocabulary}
    if shape.mlp:
        common["mlp"] = {"width": shape.mlp}
    if name in RECURRENT or name in ATTENTION:
        kind, more = (RECURRENT | ATTENTION)[name]
        return ModelConfig.from_dict({**common, "pattern": ["mixer"], "mixer": shape.layer(kind, **more)})
    if name in HYBRIDS:
        kind, more = RECURRENT[HYBRIDS[name]]
        every = min(4, shape.depth)
        if every < 2:
            raise ConfigError(f"models: {name} needs a depth of at least 2, and the depth here is {shape.depth}")
        tables = {"recurrent": shape.layer(kind, **more), "attention": shape.layer("attention", **NOPE)}
        pattern = ["recurrent"] * (every - 1) + ["attention"]
        return ModelConfig.from_dict({**common, **tables, "pattern": pattern})
    raise ConfigError(f"models: {name!r} is not known; {nearest(name, list(NAMES))}, or a TOML file")


def _from_file(path: Path, vocabulary: int) -> ModelConfig:
    table = read_toml(path, "model").get("model")
    if not isinstance(table, dict):
        raise ConfigError(f"models: {path}: has no [model] table")
    return ModelConfig.from_dict({**table, "vocabulary": vocabulary})


assert all(kind in KINDS and issubclass(KINDS[kind], MixerConfig) for kind, _ in (RECURRENT | ATTENTION).values())
