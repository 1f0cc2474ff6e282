"""One layer of a model: a mixer and its MLP, each on a residual branch, normalised before or after."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from interlace.layers.base import MixerConfig, Stream
from interlace.layers.mlp import MLP, MLPConfig
from interlace.layers.norm import RMSNorm
from interlace.layers.projection import compute_dtype


class Block(nn.Module):
    """x <- x + mixer(norm x); x <- x + mlp(norm x), or with the norms on what is added."""

    def __init__(self, width: int, kind: MixerConfig, mlp: MLPConfig | None, eps: float):
        """kind: the mixer's config; mlp: None for a layer without one."""
        super().__init__()
        self.norm_input = kind.norm == "input"
        self.mixer = kind.build(width, eps)
        self.mixer_norm = RMSNorm(width, eps)
        if mlp is not None:
            self.mlp = MLP(width, mlp)
            self.mlp_norm = RMSNorm(width, eps)
        self.has_mlp = mlp is not None

    def forward(self, x: Tensor, stream: Stream, state: Any) -> tuple[Tensor, Any]:
        """x [total, D] to ([total, D], the mixer's state)."""
        if self.norm_input:
            dtype = compute_dtype(x)
            mixed, state = self.mixer(self.mixer_norm(x, dtype), stream, state)
            if not self.has_mlp:
                return x + mixed, state
            normed, x = self.mlp_norm.after_sum(x, mixed, dtype)
            return self.mlp(normed, x), state
        mixed, state = self.mixer(x, stream, state)
        x = self.mixer_norm.into_sum(mixed, x)
        return (self.mlp_norm.into_sum(self.mlp(x), x) if self.has_mlp else x), state
