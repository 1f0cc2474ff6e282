"""Tensor parallelism: each worker holds a layer of fewer heads, or fewer hidden columns, and their products are summed.

Between `enter` and `leave` every gradient is a part: of what a worker holds alone it is the whole, and of what all hold
it is summed over the workers after the backward pass (`Workers.finish`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interlace.base.errors import ConfigError
from interlace.layers.base import LayerConfig, Stream
from interlace.layers.moe import Load
from interlace.layers.norm import GroupedGatedRMSNorm, RMSNorm
from interlace.layers.parts import Cut, Division
from interlace.model.model import HybridLM
from interlace.ops.core.across import reduce


class _Enter(torch.autograd.Function):
    """The same numbers; their gradient is the sum over workers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return reduce(d, ctx.group), None


class _Leave(torch.autograd.Function):
    """The sum over workers; the gradient is the same for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        return reduce(x, group)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return d, None


class _Sum(torch.autograd.Function):
    """The sum over workers, inside a layer: so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return reduce(x, group)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return reduce(d, ctx.group), None


class _Shared(torch.autograd.Function):
    """What every worker computes alike inside a layer and hands out: each gets its share of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, workers: int) -> Tensor:
        ctx.workers = workers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return d / ctx.workers, None


def piece(whole: Tensor, cut: Cut, place: int, workers: int) -> Tensor:
    """Return what one worker holds of a parameter."""
    found = [whole.narrow(cut.axis, start, size) for _, start, size in cut.places(place, workers)]
    return torch.cat(found, dim=cut.axis)


class Held(NamedTuple):
    """One layer of a model.

    Attributes:
        block, name: where it is: the attribute of a block.
        prefix: of its parameters' names.
        config: its config.
        table: the name of its table.
    """

    block: Any
    name: str
    prefix: str
    config: LayerConfig
    table: str

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it; of one worker, any layer.

        Raises:
            ConfigError: it cannot be divided among so many.
        """
        try:
            return self.config.divided(width, workers)
        except ValueError as error:
            if workers == 1:
                return Division(self.config, {})
            raise ConfigError(f"model.{self.table}.{error}") from None


def layers_of(model: HybridLM) -> Iterator[Held]:
    """Yield every mixer and every feed-forward layer."""
    config = model.config
    for index, block in enumerate(model.blocks):
        for name in ("mixer", "mlp"):
            if hasattr(block, name):
                after = name == "mlp" and bool(block.has_mixer)
                own = config.mlp_of(index) if after else config.kind(index)
                table = (config.mlp_name(index) if after else None) or config.kinds[index]
                yield Held(block, name, f"blocks.{index}.{name}.", own, table)


def cuts_of(model: HybridLM, workers: int) -> dict[str, Cut | None]:
    """Return how each parameter of the layers is cut over several workers; None for not at all.

    Raises:
        ConfigError: a layer cannot be divided among so many.
    """
    found: dict[str, Cut | None] = {}
    for layer in layers_of(model):
        cuts = layer.divided(model.config.width, workers).cuts
        parameters = getattr(layer.block, layer.name).named_parameters()
        found |= {layer.prefix + key: cuts.get(key) for key, _ in parameters}
    return found


@torch.no_grad()
def divide(model: HybridLM, group: str, place: int, workers: int) -> None:
    """Give this worker its heads of every layer.

    Raises:
        ConfigError: a layer cannot be divided among so many.
    """
    width = model.config.width
    for held in layers_of(model):
        division, layer = held.divided(width, workers), getattr(held.block, held.name)
        with torch.device("meta"):
            small = division.config.build(width, model.config.norm_style)
        for key, whole in layer.named_parameters():
            cut = division.cuts.get(key)
            data = whole.detach() if cut is None else piece(whole.detach(), cut, place, workers).clone()
            assert data.shape == small.get_parameter(key).shape, f"{held.table}.{key}: {list(data.shape)}"
            owner, _, own = key.rpartition(".")
            setattr(small.get_submodule(owner), own, nn.Parameter(data, requires_grad=whole.requires_grad))
        for norm in division.statistics:
            _share_statistic(getattr(small, norm), group, workers)
        if division.summed:
            small.project = _summed(small.project, division.summed, group)
        small.forward = _mixer(small.forward, group) if held.name == "mixer" else _feed(small.forward, group, workers)
        setattr(held.block, held.name, small)


def _mixer(inner: Callable[..., Any], group: str) -> Callable[..., Any]:
    def forward(x: Tensor, stream: Stream, state: Any) -> tuple[Tensor, Any]:
        out, after = inner(_Enter.apply(x, group), stream, state)
        return _Leave.apply(out, group), after

    return forward


def _feed(inner: Callable[..., Any], group: str, workers: int) -> Callable[..., Any]:
    def forward(x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Load | None]:
        out, load = inner(_Enter.apply(x, group))
        out = _Leave.apply(out, group)
        if load is not None:
            load = Load(load.counts, _Shared.apply(load.scores, workers))
        return out if residual is None else residual + out, load

    return forward


def _summed(inner: Callable[..., Tensor], groups: tuple[str, ...], group: str) -> Callable[..., Tensor]:
    def project(name: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = inner(name, x, residual)
        return _Sum.apply(out, group) if name in groups else out

    return project


def _share_statistic(norm: RMSNorm, group: str, workers: int) -> None:
    """Let a norm divide by the root mean square of the channels of all workers."""

    def normed(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = _Sum.apply(wide.square().sum(-1, keepdim=True), group)
        mean = total / (workers * x.shape[-1])  # several that hold the same channels count them as often
        return wide * torch.rsqrt(mean + norm.eps) * (norm.weight + norm.offset)

    def plain(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return normed(x).to(dtype or x.dtype)

    def gated(x: Tensor, gate: Tensor) -> Tensor:
        return normed(x * nn.functional.silu(gate)).to(gate.dtype)

    norm.forward = gated if isinstance(norm, GroupedGatedRMSNorm) else plain  # type: ignore[method-assign, assignment]
