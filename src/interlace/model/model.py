"""HybridLM: the language model, made of an embedding, layers by pattern, and a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interlace.base.errors import ConfigError, ShapeError
from interlace.base.segments import Segments
from interlace.layers.base import Stream
from interlace.layers.block import Block
from interlace.layers.low_rank import with_adapter
from interlace.layers.projection import ROUNDED, Packed, Projections, compute_dtype
from interlace.model.config import ModelConfig
from interlace.model.device import Undrawn, check_dtype, resolve_device
from interlace.model.state import ModelState
from interlace.ops.core import tables
from interlace.ops.core.quantised import Quantised, Rounding, quantise
from interlace.ops.linear.dispatch import linear

HEAD = "head"  # among the weights that were rounded


@dataclass(frozen=True)
class Source:
    """The checkpoint that a model came from; with it, the model can be saved back unchanged.

    Attributes:
        model_type: that of its family.
        dtypes: dtypes of the stored tensors, by published name.
        tensors: stored tensors that the model does not use, by published name.
        keys: keys of config.json that belong to those.
        files: files that lay beside the weights and that the tokenizer does not hold, by name.
        generation: generation_config.json.
    """

    model_type: str
    dtypes: dict[str, torch.dtype]
    tensors: dict[str, Tensor]
    keys: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)


Through = Callable[[Block, Tensor, Stream], tuple[Tensor, Any]]
"""Runs a block in training: (block, x [total, D], stream) to (x, the load of its experts or None), without a state."""


class Pass(NamedTuple):
    """The results of a pass over tokens.

    Attributes:
        hidden: [total, D], what the head reads.
        segments: where the sequences of these tokens start.
        state: the state after them.
        loads: how each block's experts were used, in training mode; None for a block without.
    """

    hidden: Tensor
    segments: Segments
    state: ModelState
    loads: list[Any]


class HybridLM(nn.Module):
    """A language model whose layers follow a pattern of recurrent and attention kinds.

    Attributes:
        config: what it was built from.
        kinds: the width and the layers' configs, by which a state of another model is known.
        tokenizer: the tokenizer that came with it, or None.
        source: the checkpoint that it was loaded from, or None.
        base: of a model with adapters, the folder or hub id of the checkpoint that its other weights are; else "".
        base_hash: the fingerprint of that checkpoint.
        through: how a pass that trains, and starts from no state, runs each block; None to call it. Such a pass keeps
            no state: the one it returns is used up.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None, device: Any = None):
        """Build a model with fresh weights drawn from torch's global generator.

        Matrices: normal with `init_std`; norms: ones; a mixer's own parameters as its file says.

        Raises:
            ConfigError: there is no such device, or no such dtype of weights.
        """
        super().__init__()
        check_dtype(dtype)
        device = resolve_device(device)
        self.config = config
        self.tokenizer: Any = None
        self.source: Source | None = None
        self.base = self.base_hash = ""
        self.through: Through | None = None
        self.packed_head: Packed | None = None
        self._packed_from: tuple[int, int] = (0, 0)
        undrawn = device.type == "meta"
        with device, Undrawn() if undrawn else nullcontext():
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            style, multiplier = config.norm_style, config.residual_multiplier
            self.blocks = nn.ModuleList(
                Block(config.width, config.kind(i), config.mlp_of(i), style, multiplier) for i in range(config.depth)
            )
            self.norm = style.build(config.width)
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.kinds: tuple[Any, ...] = (config.width, *(config.kind(i) for i in range(config.depth)))
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        if not undrawn:
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
        """The device of the weights."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights (A_log and dt_bias stay in float32 at least)."""
        return self.embedding.weight.dtype

    def empty_state(self, rows: int, reserve_tokens: int = 0) -> ModelState:
        """Return the state of `rows` sequences that have seen nothing; caches allocate `reserve_tokens` at once."""
        like = self.embedding.weight
        blocks: list[Any] = list(self.blocks)
        layers = [block.initial_state(rows, like, reserve_tokens) for block in blocks]
        return ModelState(layers, torch.zeros(rows, dtype=torch.int64), self.kinds)

    def forward(
        self,
        tokens: Tensor,
        segments: Segments | None = None,
        state: ModelState | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[Tensor, ModelState]:
        """Return the logits of the next token after each token, and the state.

        Args:
            tokens: int64 [total] with `segments` (None: one sequence), or [batch, time].
            segments: where sequences start on the flat axis.
            state: what the sequences saw before; used up by the call.
            last_only: logits only after the last token of each sequence, [N, vocabulary].

        Returns:
            logits [*tokens.shape, vocabulary] and the state after these tokens.

        Raises:
            ShapeError: tokens, segments and state disagree, or an id is outside the vocabulary.
            StateUsed: the state was given to an earlier call.
        """
        hidden, segments, state = self.hidden(tokens, segments, state)
        if last_only:
            last = hidden if segments.time == 1 else hidden[segments.last().to(hidden.device)]
            return self.logits(last), state
        return self.logits(hidden).unflatten(0, tokens.shape), state

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the head to [rows, D]; return logits [rows, vocabulary]."""
        if self.packed_head is not None and not torch.is_grad_enabled():
            self._check_packed_head()
            return self.packed_head(hidden)
        return linear(hidden, with_adapter(self.head))

    @property
    def rounding(self) -> Rounding | None:
        """How its weights were rounded for decoding and the originals dropped; None if they were not."""
        return next((weight.rounding for name, weight in self.rounded_weights() if name != HEAD), None)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights, those that were rounded for decoding as they are held."""
        return sum(w.nbytes for _, w in self.rounded_weights()) + sum(p.nbytes for p in self.parameters())

    def rounded_weights(self) -> Iterator[tuple[str, Quantised]]:
        """Yield each weight that was rounded for decoding: its module and group, or HEAD, joined by a dot."""
        for prefix, module in self.named_modules():
            if isinstance(module, Projections):
                for group, packed in module.packed.items():
                    if isinstance(packed.weight, Quantised):
                        yield f"{prefix}.{group}", packed.weight
        if self.packed_head is not None and isinstance(self.packed_head.weight, Quantised):
            yield HEAD, self.packed_head.weight

    def pack_head(self, rounding: Rounding) -> None:
        """Round the head for decoding; its own weights are dropped, unless they are the embedding's too.

        The embedding of a model made in inference mode does not show when it is written to: such a head stays as it is.
        """
        weight = self.head.weight
        if self.config.tied_embeddings and weight.is_inference():
            return
        self.hold_head(quantise(weight, rounding))

    def hold_head(self, rounded: Quantised) -> None:
        """Take a head of few bits in the place of its own weights."""
        weight = self.head.weight
        self.packed_head, self._packed_from = Packed(rounded), _identity(weight)
        if not self.config.tied_embeddings:
            weight.data = weight.new_empty(0, self.config.width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move a head of few bits with the other weights; one that was cast is the same."""
        packed, fresh = self.packed_head, _identity(self.head.weight) == self._packed_from
        super()._apply(fn, recurse)
        if packed is not None and isinstance(packed.weight, Quantised):
            packed.weight = packed.weight.moved(fn)
            if fresh:
                self._packed_from = _identity(self.head.weight)
        return self

    def _check_packed_head(self) -> None:
        """Refuse a head that was rounded if its weights changed afterwards."""
        weight = self.head.weight
        if _identity(weight) != self._packed_from if self.config.tied_embeddings else weight.shape[0]:
            raise ConfigError(f"model: the weights of its head changed after they were {ROUNDED}; load it again")

    def hidden(
        self, tokens: Tensor, segments: Segments | None = None, state: ModelState | None = None
    ) -> tuple[Tensor, Segments, ModelState]:
        """Return what the head reads, [total, D] after the last norm; the segments; the state after these tokens."""
        return self.read(tokens, segments, state)[:3]

    def read(self, tokens: Tensor, segments: Segments | None = None, state: ModelState | None = None) -> Pass:
        """Run one pass over tokens, up to the head."""
        if not isinstance(tokens, Tensor):
            raise ShapeError(f"tokens: must be a tensor of ids, got {tokens!r:.80}")
        if tokens.ndim == 2 and segments is None:
            segments = Segments.equal(*tokens.shape)
        elif tokens.ndim == 1:
            segments = segments or Segments.from_lengths([tokens.shape[0]])
        else:
            raise ShapeError(f"tokens: must be [total] or [batch, time] without segments, got {list(tokens.shape)}")
        if not torch.compiler.is_compiling() and segments.total != tokens.numel():
            raise ShapeError(f"segments: cover {segments.total} tokens, but tokens has {tokens.numel()}")
        if state is not None and not torch.compiler.is_compiling():
            state.check_kinds(self.kinds)
        if state is not None and state.count != segments.count:
            raise ShapeError(f"state: holds {state.count} sequences, but segments has {segments.count}")
        self.check_tokens(tokens)
        before = None if state is None else state.use().positions
        stream = Stream(segments, _places(segments, before, tokens.device))
        x, before_layers = self.embed(tokens.reshape(-1)), None if state is None else state.layers
        hidden, layers, loads = self.body(x, stream, before_layers)
        lengths = torch.diff(segments.offsets).long()
        after = ModelState(layers, lengths if before is None else before + lengths, self.kinds)
        if state is None and self._guided:
            after.use()
        return Pass(hidden, segments, after, loads)

    @property
    def _guided(self) -> bool:
        return self.through is not None and self.training and torch.is_grad_enabled()

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise ShapeError for ids that the vocabulary lacks.

        On a GPU this waits for the device, and so it is done only if no gradient is wanted.
        """
        if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
            raise ShapeError(f"tokens: must be integer ids, got {str(tokens.dtype).removeprefix('torch.')}")
        ask = tokens.device.type == "cpu" or not (tokens.device.type == "meta" or torch.is_grad_enabled())
        if torch.compiler.is_compiling() or not ask or not tokens.numel():
            return
        few = tokens.numel() <= 64  # nothing is allocated while decoding
        if few:
            low, high = min(ids := tokens.flatten().tolist()), max(ids)
        else:
            low, high = (int(x) for x in tokens.long().aminmax())
        if low < 0 or high >= self.config.vocabulary:
            wrong = low if low < 0 else high
            raise ShapeError(f"tokens: must lie in [0, {self.config.vocabulary}), the model's vocabulary, got {wrong}")

    def embed(self, tokens: Tensor) -> Tensor:
        """Return what the first layer reads, [total, D]."""
        x = self.embedding(tokens if tokens.dtype in (torch.int64, torch.int32) else tokens.long())
        if self.config.float32_residual:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x if self.config.embedding_multiplier == 1 else x * self.config.embedding_multiplier

    def body(self, x: Tensor, stream: Stream, layers: list[Any] | None) -> tuple[Tensor, list[Any], list[Any]]:
        """Run all between embedding and head: x [total, D] and the layers' states to the same after these tokens.

        The third result is the load of each block's experts; None for a block without experts, or outside training
        mode.
        """
        after, loads = [], []
        through = self.through if layers is None and self._guided else None
        for index, block in enumerate(self.blocks):
            x, state, load = block(x, stream, None if layers is None else layers[index], through)
            after.append(state)
            loads.append(load)
        hidden = self.norm(x, compute_dtype(self.norm.weight))
        return (hidden if self.config.logits_divisor == 1 else hidden / self.config.logits_divisor), after, loads


def _places(segments: Segments, starts: Tensor | None, device: torch.device) -> Tensor:
    """Return the positions of tokens on a device, for which the host does not wait."""
    if starts is None and segments.across is None and device.type == "cuda" and not torch.compiler.is_compiling():
        return tables.positions(segments.offsets, device)
    return tables.on_device(segments.positions(starts), device)


def _identity(weight: Tensor) -> tuple[int, int]:
    """Return what changes when a weight is replaced or written to; inference tensors do not show the latter."""
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version
