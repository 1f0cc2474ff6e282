"""Softmax attention: grouped heads, QK-norm over the projection or per head, RoPE or no position at all."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from interlace.base.segments import Segments
from interlace.layers.base import MixerConfig, Stream
from interlace.layers.norm import RMSNorm
from interlace.layers.projection import Projections
from interlace.layers.rope import RopeConfig, rotate
from interlace.ops.attention.dispatch import attention
from interlace.ops.attention.state import AttentionState


class AttentionConfig(MixerConfig):
    """Causal attention.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads; None for as many as `heads`.
        head_dim: size of a head; None for width / heads.
        position: "rope", or "none" (the order is then known from the recurrent layers only).
        rope: frequencies, where position is "rope".
        window: how many tokens a query sees, itself included; None for all.
        qk_norm: RMSNorm of queries and keys over the whole "projection" (Olmo), per "head", or "none".
        bias: whether the four projections have biases.
    """

    heads: int = Field(gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    position: Literal["rope", "none"] = "rope"
    rope: RopeConfig = RopeConfig()
    window: int | None = Field(default=None, gt=0)
    qk_norm: Literal["projection", "head", "none"] = "projection"
    bias: bool = False

    def dim(self, width: int) -> int:
        """The size of one head."""
        return self.head_dim or width // self.heads

    @property
    def groups(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    def check(self, width: int) -> None:
        """Heads must divide."""
        if self.head_dim is None and width % self.heads:
            raise ValueError(
                f"heads: {self.heads} does not divide the model's width {width}; set head_dim or change it"
            )
        if self.heads % self.groups:
            raise ValueError(f"kv_heads: {self.groups} does not divide heads = {self.heads}")
        if self.position == "rope" and self.dim(width) % 2:
            raise ValueError(f"head_dim: rope needs an even size, got {self.dim(width)}; use position = 'none'")

    def build(self, width: int, eps: float) -> Attention:
        """The module."""
        return Attention(width, self, eps)

    def parameters(self, width: int) -> int:
        """Projections, their biases and the norms."""
        d = self.dim(width)
        wide, narrow = self.heads * d, self.groups * d
        norms = {"projection": wide + narrow, "head": 2 * d, "none": 0}[self.qk_norm]
        return 2 * width * (wide + narrow) + norms + self.bias * (wide + 2 * narrow + width)

    def flops_per_token(self, width: int, context: float) -> float:
        """Projections, and scores and sums over the visible tokens."""
        d = self.dim(width)
        visible = min(context, self.window or context)
        return 4.0 * width * d * (self.heads + self.groups) + 4.0 * self.heads * d * visible

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Attention has no recurrent state."""
        return 0

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Keys and values of the visible tokens; needs head_dim, which ModelConfig fills in."""
        assert self.head_dim is not None
        return 2 * min(context, self.window or context) * self.groups * self.head_dim * element_bytes


class Attention(Projections):
    """Source: Olmo 2 and 3 (QK-norm over the projection before the head split), arXiv 2501.00656."""

    GROUPS = (("query", "key", "value"), ("output",))

    def __init__(self, width: int, config: AttentionConfig, eps: float):
        """width: the model's; eps: of the QK-norms."""
        super().__init__()
        self.config, self.dim = config, config.dim(width)
        self.rope_name = f"{self.dim} {config.rope.model_dump_json()}"
        wide, narrow = config.heads * self.dim, config.groups * self.dim
        self.query = nn.Linear(width, wide, bias=config.bias)
        self.key = nn.Linear(width, narrow, bias=config.bias)
        self.value = nn.Linear(width, narrow, bias=config.bias)
        self.output = nn.Linear(wide, width, bias=config.bias)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.query_norm = RMSNorm(self.dim if per_head else wide, eps)
            self.key_norm = RMSNorm(self.dim if per_head else narrow, eps)

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> AttentionState:
        """The state of `rows` sequences that have seen nothing."""
        groups, window = self.config.groups, self.config.window
        return AttentionState.empty(rows, groups, self.dim, self.dim, window, like, reserve)

    def forward(self, x: Tensor, stream: Stream, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """x [total, D] to ([total, D], the state after these tokens)."""
        sizes = (self.config.heads * self.dim, self.config.groups * self.dim, self.config.groups * self.dim)
        query, key, value = self.project("query", x).split(sizes, dim=-1)
        if self.config.qk_norm == "projection":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (y.unflatten(-1, (-1, self.dim)) for y in (query, key, value))
        if self.config.qk_norm == "head":
            query, key = self.query_norm(query), self.key_norm(key)
        if self.config.position == "rope":
            cos, sin = stream.rotary(self.rope_name, self.config.rope, self.dim)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        segments: Segments = stream.segments
        mixed, state = attention(query, key, value, segments=segments, state=state, window=self.config.window)
        return self.project("output", mixed.flatten(1)), state
