"""The base of all layers: a config that knows its sizes, a module, and the state that the module carries."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from interlace.base.schema import Closed
from interlace.base.segments import Segments
from interlace.layers.norm import NormStyle
from interlace.layers.parts import Division
from interlace.layers.rope import RopeConfig, rotary


@dataclass
class Stream:
    """Facts that all layers of one forward pass share.

    Attributes:
        segments: where sequences start on the flat axis.
        positions: int64 [total], each token's place in its own sequence.
    """

    segments: Segments
    positions: Tensor
    _rotary: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def rotary(self, name: str, rope: RopeConfig, dim: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin [total, dim], computed once for all layers that share this rope, and so this name."""
        if name not in self._rotary:
            self._rotary[name] = rotary(self.positions, rope, dim)
        return self._rotary[name]


class LayerConfig(Closed):
    """One kind of layer as a recipe's table describes it.

    Attributes:
        norm: "input" normalises what the layer's branches read; "output" what they add (Olmo 2's reordered norm).
    """

    norm: Literal["input", "output"] = "input"

    @abstractmethod
    def build(self, width: int, style: NormStyle) -> Any:
        """Return the module."""

    @abstractmethod
    def check(self, width: int) -> None:
        """Raise ValueError, naming the field, if the numbers do not fit together at this width."""

    def filled(self, width: int) -> LayerConfig:
        """Return the layer with every size written out that follows from others; it is checked already."""
        return self

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads.

        Raises:
            ValueError: it cannot be divided so; the message names the field.
        """
        raise ValueError("the layer cannot be divided over heads; set parallel.tensor = 1")

    @abstractmethod
    def parameters(self, width: int) -> int:
        """Return the number of parameters."""

    def idle_parameters(self, width: int) -> int:
        """Return how many of the parameters one token leaves unread."""
        return 0

    @abstractmethod
    def flops_per_token(self, width: int, context: float) -> float:
        """Return forward FLOPs per token (a multiply-add counts 2) with `context` tokens visible on average."""

    @abstractmethod
    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Return the bytes of recurrent state per sequence; they do not grow with context."""

    @abstractmethod
    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Return the bytes per sequence that grow with context, after `context` tokens: keys and values."""


class MixerConfig(LayerConfig):
    """A layer that carries something from token to token: forward(x [total, D], stream, state) -> (y, state).

    Attributes:
        mlp: the feed-forward layer after the mixer: true for the table `mlp`, the name of another table, or false.
    """

    mlp: bool | str = True


class FeedForwardConfig(LayerConfig):
    """A layer that treats each token alone: forward(x [total, D], residual) -> (y, load of experts or None).

    It follows a mixer, or stands by itself.
    """

    def state_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: the layer carries no state."""
        return 0

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Return 0: the layer keeps no cache."""
        return 0
