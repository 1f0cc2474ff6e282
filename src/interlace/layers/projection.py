"""Multiply linear layers that read the same input as one matrix product.

A module that inherits `Projections` keeps its linear layers apart, as checkpoints name them, and multiplies by groups
of them at once. In training a group's weights are stacked for each product; in a model that only decodes they are
stacked once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interlace.base.errors import ConfigError
from interlace.layers.low_rank import adapter_of, added_by_adapters
from interlace.layers.parts import Parts
from interlace.ops.linear.dispatch import linear


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with x: autocast's if it is on, else x's."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Products inside keep the dtype of their operands."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


@dataclass
class Packed:
    """A group's weights laid out for decoding: as they are, or as int8 with one scale per output.

    Attributes:
        weight: [outputs, D], floating or int8.
        scales: float32 [outputs] with an int8 weight, else None.
        bias: [outputs] or None.
        parts: weight and bias of each layer as they lie in these; a layer without a bias adds zeros.
    """

    weight: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None
    parts: tuple[tuple[Tensor, Tensor | None], ...] = ()

    @staticmethod
    def int8(weight: Tensor) -> Packed:
        """Round each output's weights to 255 steps of its own largest."""
        wide = weight.float()
        scales = (wide.abs().amax(dim=1) / 127).clamp(min=1e-12)
        return Packed((wide / scales[:, None]).round().to(torch.int8), scales)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x weight^T + bias + residual."""
        if self.bias is None:
            return linear(x, self.weight, residual, scales=self.scales)
        out = linear(x, self.weight, scales=self.scales) + self.bias
        return out if residual is None else residual + out


class Projections(nn.Module):
    """A module whose linear layers are multiplied group by group; a group is called by its first layer's name.

    Attributes:
        GROUPS: names of the linear layers that read the same input.
        FLOAT32: parameters that stay in float32 at least, whatever the model is cast to.
        READ_WHOLE: names of other linear layers, whose weights are read through `with_adapter`.
        packed: by group, once `pack` was called.
    """

    GROUPS: tuple[tuple[str, ...], ...] = ()
    FLOAT32: ClassVar[tuple[str, ...]] = ()
    READ_WHOLE: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        """Begin with nothing packed."""
        super().__init__()
        self.packed: dict[str, Packed] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Leave the parameters of FLOAT32 bit for bit as they are in a cast; move them with the others."""
        kept = {name: getattr(self, name).data for name in self.FLOAT32 if getattr(self, name) is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            parameter = getattr(self, name)
            if parameter.dtype.itemsize < 4:
                parameter.data = before.to(parameter.device, torch.float32)
        return self

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        return {}

    def project(self, group: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [rows, D] through all layers of a group, side by side; residual is added."""
        if self.packed and not torch.is_grad_enabled():
            packed = self.packed[group]
            if self._replaced(packed, self._layers(group)):
                self._pack_group(group, packed.scales is not None)
                packed = self.packed[group]
            return packed(x, residual)
        layers = self._layers(group)
        if layers[0].weight.shape[0] == 0:
            raise ConfigError("model: its weights were rounded to int8 for decoding; load it again to train it")
        dtype = compute_dtype(x)
        weights = [layer.weight.to(dtype) for layer in layers]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias = _side_by_side([layer.bias for layer in layers], weights)
        x = x.to(dtype)
        if bias is not None:
            out = torch.nn.functional.linear(x, weight, bias.to(dtype))
            out = out if residual is None else residual + out
        else:
            out = linear(x, weight, residual)
        return added_by_adapters(layers, x, out)

    def pack(self, int8: bool = False) -> None:
        """Pack the weights for decoding; with int8 the layers' own weights are dropped."""
        for names in self.GROUPS:
            self._pack_group(names[0], int8)

    def _pack_group(self, group: str, int8: bool) -> None:
        layers = self._layers(group)
        if any(adapter_of(layer) is not None for layer in layers):
            raise ConfigError(
                "model: has LoRA adapters; merge them with `merge_adapters` before it is packed to decode"
            )
        given_up = [layer.weight.shape[0] == 0 for layer in layers]
        if any(given_up):
            name = self._names(group)[given_up.index(True)]
            raise ConfigError(
                f"model: the weight of '{name}' was rounded to int8 for decoding, so that its group cannot be packed "
                "again; replace the weights of the whole group, or load the model again"
            )
        weight = torch.cat([layer.weight.detach() for layer in layers])
        bias = _side_by_side([layer.bias for layer in layers], [layer.weight for layer in layers])
        bias = None if bias is None else bias.detach()
        sizes = [layer.weight.shape[0] for layer in layers]
        biases = [None] * len(layers) if bias is None else bias.split(sizes)
        for layer, part, own in zip(layers, weight.split(sizes), biases, strict=True):  # the same memory, not a copy
            layer.weight.data = part.new_empty(0, part.shape[1]) if int8 else part
            if layer.bias is not None:
                layer.bias.data = own
        parts = tuple((layer.weight.detach(), None if layer.bias is None else layer.bias.detach()) for layer in layers)
        whole = Packed.int8(weight) if int8 else Packed(weight)
        self.packed[group] = replace(whole, bias=bias, parts=parts)

    def _replaced(self, packed: Packed, layers: list[nn.Linear]) -> bool:
        """Return whether a weight or bias was cast, moved, copied, replaced, added or removed since packing."""
        for layer, (weight, bias) in zip(layers, packed.parts, strict=True):
            if not (_same(layer.weight, weight) if packed.scales is None else layer.weight.shape[0] == 0):
                return True
            if layer.bias is not bias and not _same(layer.bias, bias):  # both None, mostly
                return True
        return False

    def _names(self, group: str) -> tuple[str, ...]:
        return next(names for names in self.GROUPS if names[0] == group)

    def _layers(self, group: str) -> list[nn.Linear]:
        return [getattr(self, name) for name in self._names(group)]


def _side_by_side(biases: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """Return the biases of a group, zeros for a layer without one; None if no layer has one."""
    if all(bias is None for bias in biases):
        return None
    pairs = zip(biases, weights, strict=True)
    return torch.cat([weight.new_zeros(weight.shape[0]) if bias is None else bias for bias, weight in pairs])


def _same(given: Tensor | None, part: Tensor | None) -> bool:
    """Return whether both are the same numbers in the same memory."""
    if given is None or part is None:
        return given is part
    same = given.data_ptr() == part.data_ptr() and given.dtype == part.dtype
    return same and given.shape == part.shape and given.stride() == part.stride()
