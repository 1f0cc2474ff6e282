"""Softmax attention: grouped heads, QK-norm over the projection or per head, RoPE or no position, an output gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from interlace.base.segments import Segments
from interlace.layers.base import MixerConfig, Stream
from interlace.layers.norm import NormStyle
from interlace.layers.parts import Division, Parts, check_divides, check_no_bias, columns, rows
from interlace.layers.projection import Projections
from interlace.layers.rope import RopeConfig
from interlace.ops.attention.dispatch import attention
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.rope.dispatch import rope


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
        scale: multiplies the scores; None for head_dim ** -0.5.
        gate: a second output of the query projection opens each head's result through a sigmoid (Qwen3-Next).
        bias: whether the four projections have biases.
    """

    heads: int = Field(gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    position: Literal["rope", "none"] = "rope"
    rope: RopeConfig = RopeConfig()
    window: int | None = Field(default=None, gt=0)
    qk_norm: Literal["projection", "head", "none"] = "projection"
    scale: float | None = None
    gate: bool = False
    bias: bool = False

    def dim(self, width: int) -> int:
        """The size of one head."""
        return self.head_dim or width // self.heads

    @property
    def groups(self) -> int:
        """How many key and value heads there are."""
        return self.kv_heads or self.heads

    def filled(self, width: int) -> AttentionConfig:
        """Return the config with kv_heads and head_dim filled in."""
        return self.model_copy(update={"kv_heads": self.groups, "head_dim": self.dim(width)})

    def check(self, width: int) -> None:
        """Check that the heads divide."""
        if self.head_dim is None and width % self.heads:
            raise ValueError(
                f"heads: {self.heads} does not divide the model's width {width}; set head_dim or change it"
            )
        if self.heads % self.groups:
            raise ValueError(f"kv_heads: {self.groups} does not divide heads = {self.heads}")
        turning = self.rope.turning(self.dim(width))
        if self.position == "rope" and (turning % 2 or not turning):
            raise ValueError(f"head_dim: rope needs an even size, got {turning}; use position = 'none'")

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("heads", self.heads, workers)
        check_no_bias(self.bias, workers)
        if self.groups % workers and workers % self.groups:
            raise ValueError(f"kv_heads: {self.groups} and parallel.tensor = {workers} do not divide each other")
        d, pieces = self.dim(width), (min(self.groups, workers),)
        wide, narrow = self.heads * d, self.groups * d
        cuts = {"query.weight": rows((1 + self.gate) * wide), "output.weight": columns(wide)}
        cuts |= {f"{name}.weight": rows(narrow, pieces=pieces) for name in ("key", "value")}
        if self.qk_norm == "projection":
            cuts |= {"query_norm.weight": rows(wide), "key_norm.weight": rows(narrow, pieces=pieces)}
        own = {"heads": self.heads // workers, "kv_heads": max(1, self.groups // workers), "head_dim": d}
        statistics = ("query_norm", "key_norm") if self.qk_norm == "projection" else ()
        return Division(self.model_copy(update=own), cuts, statistics)

    def build(self, width: int, style: NormStyle) -> Attention:
        """Return the module."""
        return Attention(width, self, style)

    def parameters(self, width: int) -> int:
        """Count projections, their biases and the norms."""
        d = self.dim(width)
        wide, narrow = self.heads * d, self.groups * d
        norms = {"projection": wide + narrow, "head": 2 * d, "none": 0}[self.qk_norm]
        gate = self.gate * wide * (width + self.bias)
        return 2 * width * (wide + narrow) + gate + norms + self.bias * (wide + 2 * narrow + width)

    def flops_per_token(self, width: int, context: float) -> float:
        """Count projections, and scores and sums over the visible tokens."""
        d = self.dim(width)
        visible = min(context, self.window or context)
        projections = 4.0 * width * d * (self.heads + self.groups) + 2.0 * self.gate * width * self.heads * d
        return projections + 4.0 * self.heads * d * visible

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: attention has no recurrent state."""
        return 0

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Count keys and values of the visible tokens; needs head_dim, which ModelConfig fills in."""
        assert self.head_dim is not None
        return 2 * min(context, self.window or context) * self.groups * self.head_dim * element_bytes


class Attention(Projections):
    """Softmax attention. Source: Olmo 2 and 3 (QK-norm over the projection before the head split), arXiv 2501.00656."""

    GROUPS = (("query", "key", "value"), ("output",))

    def __init__(self, width: int, config: AttentionConfig, style: NormStyle):
        """width: the width of the model; style: the style of the QK-norms."""
        super().__init__()
        self.config, self.dim = config, config.dim(width)
        self.rope_name = f"{self.dim} {config.rope.model_dump_json()}"
        wide, narrow = config.heads * self.dim, config.groups * self.dim
        self.query = nn.Linear(width, (1 + config.gate) * wide, bias=config.bias)  # each head's query, then its gate
        self.key = nn.Linear(width, narrow, bias=config.bias)
        self.value = nn.Linear(width, narrow, bias=config.bias)
        self.output = nn.Linear(wide, width, bias=config.bias)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.query_norm = style.build(self.dim if per_head else wide)
            self.key_norm = style.build(self.dim if per_head else narrow)

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        return {"query.weight": Parts((self.dim, self.dim), self.config.heads)} if self.config.gate else {}

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> AttentionState:
        """Return the state of `rows` sequences that have seen nothing."""
        groups, window = self.config.groups, self.config.window
        return AttentionState.empty(rows, groups, self.dim, self.dim, window, like, reserve)

    def prepare(self, stream: Stream) -> None:
        """Compute what all layers share, so that a pass that is compiled, or done twice, finds it there."""
        if self.config.position == "rope":
            stream.rotary(self.rope_name, self.config.rope, self.dim)

    def forward(self, x: Tensor, stream: Stream, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        narrow = self.config.groups * self.dim
        query, key, value = self.project("query", x).split((self.query.out_features, narrow, narrow), dim=-1)
        gate = None
        if self.config.gate:
            query, gate = (y.flatten(1) for y in query.unflatten(-1, (-1, 2, self.dim)).unbind(2))
        if self.config.qk_norm == "projection":
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (y.unflatten(-1, (-1, self.dim)) for y in (query, key, value))
        if self.config.qk_norm == "head":
            query, key = self.query_norm(query), self.key_norm(key)
        if self.config.position == "rope":
            cos, sin = stream.rotary(self.rope_name, self.config.rope, self.dim)
            query, key = rope(query, cos, sin), rope(key, cos, sin)
        segments: Segments = stream.segments
        scale, window = self.config.scale, self.config.window
        mixed, state = attention(query, key, value, segments=segments, state=state, scale=scale, window=window)
        mixed = mixed.flatten(1)
        return self.project("output", mixed if gate is None else mixed * gate.sigmoid()), state
