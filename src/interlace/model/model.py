"""HybridLM: embedding, layers by pattern, head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.layers.base import Stream
from interlace.layers.block import Block
from interlace.layers.projection import Packed, compute_dtype
from interlace.model.config import ModelConfig
from interlace.model.state import ModelState
from interlace.ops.linear.dispatch import linear


@dataclass(frozen=True)
class Source:
    """Where a loaded model came from, so that it can be saved back as it was.

    Attributes:
        model_type: of its family.
        dtypes: of the stored tensors, by published name.
        tensors: stored tensors that the model does not use, by published name.
        keys: of config.json, that belong to those.
    """

    model_type: str
    dtypes: dict[str, torch.dtype]
    tensors: dict[str, Tensor]
    keys: dict[str, Any]


class HybridLM(nn.Module):
    """A language model whose layers follow a pattern of recurrent and attention kinds.

    Attributes:
        config: what it was built from.
        tokenizer: the tokenizer that came with it, or None.
        source: the checkpoint that it was loaded from, or None.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None, device: Any = None):
        """A model with fresh weights drawn from torch's global generator.

        Matrices: normal with `init_std`; norms: ones; a mixer's own parameters as its file says.
        """
        super().__init__()
        self.config = config
        self.tokenizer: Any = None
        self.source: Source | None = None
        self.packed_head: Packed | None = None
        with torch.device(device or "cpu"):
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            style, multiplier = config.norm_style, config.residual_multiplier
            self.blocks = nn.ModuleList(
                Block(config.width, config.kind(i), config.mlp_of(i), style, multiplier) for i in range(config.depth)
            )
            self.norm = style.build(config.width)
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        if self.embedding.weight.device.type != "meta":
            self.initialise()
        if dtype is not None:
            self.to(dtype)

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw every matrix anew."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            for name in getattr(module, "MATRICES", ()):
                nn.init.normal_(getattr(module, name), std=self.config.init_std)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights (A_log and dt_bias stay in float32 at least)."""
        return self.embedding.weight.dtype

    def empty_state(self, rows: int, reserve_tokens: int = 0) -> ModelState:
        """The state of `rows` sequences that have seen nothing; caches will allocate `reserve_tokens` at once."""
        like = self.embedding.weight
        blocks: list[Any] = list(self.blocks)
        layers = [block.initial_state(rows, like, reserve_tokens) for block in blocks]
        return ModelState(layers, torch.zeros(rows, dtype=torch.int64))

    def forward(
        self,
        tokens: Tensor,
        segments: Segments | None = None,
        state: ModelState | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Tensor, ModelState]:
        """Logits of the next token after each token.

        Args:
            tokens: int64 [total] with `segments` (None: one sequence), or [batch, time].
            segments: where sequences start on the flat axis.
            state: what the sequences saw before; used up by the call.
            last_only: logits only after the last token of each sequence, [N, vocabulary].

        Returns:
            logits [*tokens.shape, vocabulary] and the state after these tokens.

        Raises:
            ShapeError: tokens, segments and state disagree.
        """
        hidden, segments, state = self.hidden(tokens, segments, state)
        if last_only:
            last = hidden if segments.time == 1 else hidden[segments.last().to(hidden.device)]
            return self.logits(last), state
        return self.logits(hidden).unflatten(0, tokens.shape), state

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of [rows, D]: [rows, vocabulary]."""
        if self.packed_head is not None and not torch.is_grad_enabled():
            return self.packed_head(hidden)
        return linear(hidden, self.head.weight)

    def hidden(
        self, tokens: Tensor, segments: Segments | None = None, state: ModelState | None = None
    ) -> tuple[Tensor, Segments, ModelState]:
        """What the head reads, [total, D] after the last norm; the segments; the state after these tokens."""
        if tokens.ndim == 2 and segments is None:
            segments = Segments.equal(*tokens.shape)
        elif tokens.ndim == 1:
            segments = segments or Segments.from_lengths([tokens.shape[0]])
        else:
            raise ShapeError(f"tokens: must be [total] or [batch, time] without segments, got {list(tokens.shape)}")
        if not torch.compiler.is_compiling() and segments.total != tokens.numel():
            raise ShapeError(f"segments: cover {segments.total} tokens, but tokens has {tokens.numel()}")
        if state is not None and state.count != segments.count:
            raise ShapeError(f"state: holds {state.count} sequences, but segments has {segments.count}")
        before = None if state is None else state.positions
        stream = Stream(segments, segments.positions(before).to(tokens.device))
        hidden, layers = self.body(self.embed(tokens.reshape(-1)), stream, None if state is None else state.layers)
        lengths = torch.diff(segments.offsets).long()
        return hidden, segments, ModelState(layers, lengths if before is None else before + lengths)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first layer reads, [total, D]."""
        x = self.embedding(tokens)
        if self.config.float32_residual:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x if self.config.embedding_multiplier == 1 else x * self.config.embedding_multiplier

    def body(self, x: Tensor, stream: Stream, layers: list[Any] | None) -> tuple[Tensor, list[Any]]:
        """All between embedding and head: x [total, D] and the layers' states to the same after these tokens."""
        after = []
        for index, block in enumerate(self.blocks):
            x, state = block(x, stream, None if layers is None else layers[index])
            after.append(state)
        hidden = self.norm(x, compute_dtype(self.norm.weight))
        return (hidden if self.config.logits_divisor == 1 else hidden / self.config.logits_divisor), after
