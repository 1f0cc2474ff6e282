"""One layer of a model: a mixer, a feed-forward layer or both, each on a residual branch with its norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from interlace.layers.base import FeedForwardConfig, LayerConfig, Stream
from interlace.layers.norm import NormStyle, RMSNorm
from interlace.layers.projection import compute_dtype


class Block(nn.Module):
    """A layer: x <- x + mixer(norm x); x <- x + mlp(norm x), or with norms on what is added. Branches may be absent."""

    def __init__(
        self, width: int, kind: LayerConfig, mlp: FeedForwardConfig | None, style: NormStyle, multiplier: float = 1.0
    ):
        """Build the branches.

        kind: the config of a mixer, or of a feed-forward layer that stands alone.
        mlp: the config of the layer after a mixer, or None.
        multiplier: factor on what each branch adds.
        """
        super().__init__()
        self.norm_input, self.multiplier = kind.norm == "input", multiplier
        self.has_mixer, self.has_mlp = not isinstance(kind, FeedForwardConfig), mlp is not None
        if self.has_mixer:
            self.mixer = kind.build(width, style)
            self.mixer_norm = style.build(width)
        else:
            mlp, self.has_mlp = kind, True  # type: ignore[assignment]
        if mlp is not None:
            self.mlp = mlp.build(width, style)
            self.mlp_norm = style.build(width)

    def initial_state(self, rows: int, like: Tensor, reserve: int = 0) -> Any:
        """Return the mixer's state of `rows` sequences that have seen nothing; None without a mixer."""
        return self.mixer.initial_state(rows, like, reserve) if self.has_mixer else None

    def prepare(self, stream: Stream) -> None:
        """Compute what the mixer shares with others, before a pass that is compiled or done twice."""
        if self.has_mixer and hasattr(self.mixer, "prepare"):
            self.mixer.prepare(stream)

    def forward(
        self, x: Tensor, stream: Stream, state: Any, through: Callable[..., tuple[Tensor, Any]] | None = None
    ) -> tuple[Tensor, Any, Any]:
        """Map x [total, D] to ([total, D], the mixer's state or None, in training mode the experts' load or None).

        through: how a pass that trains, and starts from no state, is run; None to run it here.
        """
        if through is None:
            return self.run(x, stream, state)
        x, load = through(self, x, stream)
        return x, None, load

    def run(self, x: Tensor, stream: Stream, state: Any) -> tuple[Tensor, Any, Any]:
        """Compute what `forward` returns; none of the block's hooks is called."""
        return self._pre_norm(x, stream, state) if self.norm_input else self._post_norm(x, stream, state)

    def _pre_norm(self, x: Tensor, stream: Stream, state: Any) -> tuple[Tensor, Any, Any]:
        dtype = compute_dtype((self.mixer_norm if self.has_mixer else self.mlp_norm).weight)
        if not self.has_mixer:
            x, load = self._feed(self.mlp_norm(x, dtype), x)
            return x, None, load
        mixed, state = self.mixer(self.mixer_norm(x, dtype), stream, state)
        mixed = self._scaled(mixed)
        if not self.has_mlp:
            return x + mixed, state, None
        normed, x = self.mlp_norm.after_sum(x, mixed, dtype)
        x, load = self._feed(normed, x)
        return x, state, load

    def _post_norm(self, x: Tensor, stream: Stream, state: Any) -> tuple[Tensor, Any, Any]:
        load = None
        if self.has_mixer:
            mixed, state = self.mixer(x.to(compute_dtype(self.mixer_norm.weight)), stream, state)
            x = self._normed_into(self.mixer_norm, mixed, x)
        if self.has_mlp:
            fed, load = self.mlp(x.to(compute_dtype(self.mlp_norm.weight)))
            x = self._normed_into(self.mlp_norm, fed, x)
        return x, state, load

    def _normed_into(self, norm: RMSNorm, branch: Tensor, x: Tensor) -> Tensor:
        return norm.into_sum(branch, x) if self.multiplier == 1 else x + self._scaled(norm(branch, x.dtype))

    def _scaled(self, branch: Tensor) -> Tensor:
        return branch if self.multiplier == 1 else branch * self.multiplier

    def _feed(self, normed: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        if self.multiplier == 1:
            fed: tuple[Tensor, Any] = self.mlp(normed, x)
            return fed
        out, load = self.mlp(normed)
        return x + self._scaled(out), load
