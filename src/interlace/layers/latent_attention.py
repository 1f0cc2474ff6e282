"""Multi-head latent attention, without positions: keys and values of all heads are read out of one small latent.

The latent is cached. For a prompt, keys and values are read out of it head by head, as in plain attention. A single
token takes its query to the latent instead, and the mixed latent to its values: the same sum in another order, which
never builds the past's keys and values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from interlace.layers.base import MixerConfig, Stream
from interlace.layers.low_rank import with_adapter
from interlace.layers.norm import NormStyle, RMSNorm
from interlace.layers.parts import Division, Parts, check_divides, check_no_bias, columns, rows
from interlace.layers.projection import Projections
from interlace.ops.attention.dispatch import attention, compiled_past, step
from interlace.ops.attention.ragged import causal
from interlace.ops.attention.step import Step
from interlace.ops.core.attention_state import AttentionState

LATENT_EPS = 1e-6  # of the norms inside, whatever the model's own eps is
EXPANDED_BYTES = 1 << 28  # of keys and values that a prompt's past is expanded to at a time


class LatentAttentionConfig(MixerConfig):
    """Multi-head latent attention.

    Attributes:
        heads: heads of queries, keys and values.
        latent: size of what keys and values are read out of.
        key_dim: the part of a head's key that is read out of the latent.
        shared_dim: the part that all heads share, beside the latent.
        value_dim: size of a value head.
        query_latent: size of what queries are read out of; None to read them from the input.
        bias: whether the projections that read the input, and the output's, have biases.
    """

    heads: int = Field(gt=0)
    latent: int = Field(gt=0)
    key_dim: int = Field(gt=0)
    shared_dim: int = Field(gt=0)
    value_dim: int = Field(gt=0)
    query_latent: int | None = Field(default=None, gt=0)
    bias: bool = False

    @property
    def query_dim(self) -> int:
        """Size of a query head."""
        return self.key_dim + self.shared_dim

    def check(self, width: int) -> None:
        """Accept any sizes: all fit together."""

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("heads", self.heads, workers)
        check_no_bias(self.bias, workers)
        cuts = {
            "query.weight": rows(self.heads * self.query_dim),
            "expand.weight": rows(self.heads * (self.key_dim + self.value_dim)),
            "output.weight": columns(self.heads * self.value_dim),
        }
        return Division(self.model_copy(update={"heads": self.heads // workers}), cuts)

    def build(self, width: int, style: NormStyle) -> LatentAttention:
        """Return the module."""
        return LatentAttention(width, self)

    def _matrices(self, width: int) -> int:
        queries = self.heads * self.query_dim
        read = width * queries if self.query_latent is None else self.query_latent * (width + queries)
        kept = width * (self.latent + self.shared_dim)
        return read + kept + self.heads * (self.latent * (self.key_dim + self.value_dim) + self.value_dim * width)

    def parameters(self, width: int) -> int:
        """Count projections, biases and the latents' norms."""
        biases = self.latent + self.shared_dim + width + (self.query_latent or 0)
        return self._matrices(width) + self.bias * biases + self.latent + (self.query_latent or 0)

    def flops_per_token(self, width: int, context: float) -> float:
        """Count projections, and scores and sums over the visible tokens, as a prompt's are computed."""
        return 2.0 * self._matrices(width) + 2.0 * self.heads * (self.query_dim + self.value_dim) * context

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: attention has no recurrent state."""
        return 0

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Count the latents and shared keys."""
        return context * (self.latent + self.shared_dim) * element_bytes


class LatentAttention(Projections):
    """Multi-head latent attention.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; without RoPE as in Kimi Linear, arXiv 2510.26692.
    """

    READ_WHOLE = ("expand",)

    def __init__(self, width: int, config: LatentAttentionConfig):
        """width: the width of the model."""
        super().__init__()
        self.config = c = config
        queries = c.heads * c.query_dim
        if c.query_latent is None:
            self.query = nn.Linear(width, queries, bias=False)
            self.GROUPS = (("query",), ("compress",), ("output",))
        else:
            self.query_down = nn.Linear(width, c.query_latent, bias=c.bias)
            self.query_norm = RMSNorm(c.query_latent, LATENT_EPS)
            self.query = nn.Linear(c.query_latent, queries, bias=False)
            self.GROUPS = (("query_down",), ("query",), ("compress",), ("output",))
        self.compress = nn.Linear(width, c.latent + c.shared_dim, bias=c.bias)
        self.latent_norm = RMSNorm(c.latent, LATENT_EPS)
        self.expand = nn.Linear(c.latent, c.heads * (c.key_dim + c.value_dim), bias=False)
        self.output = nn.Linear(c.heads * c.value_dim, width, bias=c.bias)

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        c = self.config
        expand = Parts((c.key_dim, c.value_dim), c.heads)
        return {"compress.weight": Parts((c.latent, c.shared_dim)), "expand.weight": expand}

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> AttentionState:
        """Return the state of `rows` sequences that have seen nothing: its keys are latents beside shared keys."""
        return AttentionState.empty(rows, 1, self.config.latent + self.config.shared_dim, 0, None, like, reserve)

    def forward(self, x: Tensor, stream: Stream, state: AttentionState | None) -> tuple[Tensor, AttentionState]:
        """Map x [total, D] to ([total, D], the state after these tokens)."""
        c, segments = self.config, stream.segments
        source = x if c.query_latent is None else self.query_norm(self.project("query_down", x))
        query = self.project("query", source).unflatten(-1, (c.heads, -1))
        latent, shared = self.project("compress", x).split((c.latent, c.shared_dim), dim=-1)
        kept = torch.cat((self.latent_norm(latent), shared), dim=-1).unsqueeze(1)
        if state is None:
            key, value = self.read_out(kept.squeeze(1), range(c.heads))
            mixed, _ = attention(query, key, value, segments=segments)
            return self.project("output", mixed.flatten(1)), AttentionState.of_tokens(
                kept, kept[..., :0], segments, None
            )
        if state.places is not None:
            past = state
            mixed = self.one_token(query, lambda wide: step(Step(wide, kept, c.latent, past, c.query_dim**-0.5)))
            return self.project("output", mixed.flatten(1)), state
        state = state.append(kept, kept[..., :0], segments)
        equal = segments.time == 1 and len(set(state.positions)) == 1 and not torch.is_grad_enabled()
        mixed = self.side_by_side(query, state) if equal else self.after_past(query, state, segments.spans())
        return self.project("output", mixed.flatten(1)), state

    def read_out(self, kept: Tensor, heads: range) -> tuple[Tensor, Tensor]:
        """Map kept [total, latent + shared] to keys [total, heads, query_dim] and values [total, heads, value_dim]."""
        c = self.config
        latent, shared = kept.split((c.latent, c.shared_dim), dim=-1)
        rows = c.key_dim + c.value_dim
        weight = with_adapter(self.expand)[heads.start * rows : heads.stop * rows]
        both = nn.functional.linear(latent, weight.to(latent.dtype))
        key, value = both.unflatten(-1, (len(heads), -1)).split((c.key_dim, c.value_dim), dim=-1)
        return torch.cat((key, shared.unsqueeze(1).expand(-1, len(heads), -1)), dim=-1), value

    def after_past(self, query: Tensor, state: AttentionState, spans: list[tuple[int, int]]) -> Tensor:
        """Attend with each sequence's queries to all it has seen, a few heads at a time to bound memory."""
        c = self.config
        rows = []
        for row, (a, b) in enumerate(spans):
            kept = state.keys[row, : state.held(row), 0]
            one_head = kept.shape[0] * (c.query_dim + c.value_dim) * kept.element_size()
            size = c.heads if torch.is_grad_enabled() else max(1, min(c.heads, EXPANDED_BYTES // one_head))
            parts = []
            for first in range(0, c.heads, size):
                heads = range(first, min(first + size, c.heads))
                key, value = self.read_out(kept, heads)
                mine = query[a:b, heads.start : heads.stop]
                parts.append(compiled_past(mine, key, value, c.query_dim**-0.5, None))
            rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows)

    def side_by_side(self, query: Tensor, state: AttentionState) -> Tensor:
        """One token of each of N sequences that have seen equally much: [N, heads, query_dim] to mixed values."""
        c = self.config
        kept = state.keys[:, : state.held(0)].transpose(1, 2)

        def mix(wide: Tensor) -> Tensor:
            return causal(wide.unsqueeze(2), kept, kept[..., : c.latent], c.query_dim**-0.5, None).squeeze(2)

        return self.one_token(query, mix)

    def one_token(self, query: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        """Mix the latents by queries [N, heads, latent + shared], and read values out: [N, heads, value_dim].

        query: [N, heads, query_dim]. A query is taken to where the latents are, so that no key is read out of them.
        """
        c = self.config
        weight = with_adapter(self.expand).to(query.dtype).unflatten(0, (c.heads, -1))
        to_keys, to_values = weight.split((c.key_dim, c.value_dim), dim=1)
        own, shared = query.split((c.key_dim, c.shared_dim), dim=-1)
        taken = torch.bmm(own.transpose(0, 1), to_keys).transpose(0, 1)  # [N, heads, latent]
        mixed = mix(torch.cat((taken, shared), dim=-1))
        return torch.bmm(mixed.transpose(0, 1), to_values.transpose(1, 2)).transpose(0, 1)
