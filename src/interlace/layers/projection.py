"""Multiply linear layers that read the same input as one matrix product.

A module that inherits `Projections` keeps its linear layers apart, as checkpoints name them, and multiplies by groups
of them at once. In training a group's weights are stacked for each product; in a model that only decodes they are
stacked once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interlace.base.errors import ConfigError
from interlace.layers.low_rank import adapter_of, added_by_adapters
from interlace.layers.parts import Parts
from interlace.ops.core.quantised import Quantised, Rounding, quantise
from interlace.ops.linear.dispatch import linear

ROUNDED = "rounded to few bits for decoding"


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
    """A group's weights laid out for decoding: as they are, or rounded to few bits.

    Attributes:
        weight: [outputs, D].
        bias: [outputs] or None.
        parts: weight and bias of each layer as they lie in these; a layer without a bias adds zeros.
    """

    weight: Tensor | Quantised
    bias: Tensor | None = None
    parts: tuple[tuple[Tensor, Tensor | None], ...] = ()

    @property
    def rounding(self) -> Rounding | None:
        """How the weight was rounded; None for one that was not."""
        return self.weight.rounding if isinstance(self.weight, Quantised) else None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x weight^T + bias + residual."""
        if self.bias is None:
            return linear(x, self.weight, residual)
        out = linear(x, self.weight) + self.bias
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
        for packed in self.packed.values():
            if isinstance(packed.weight, Quantised):
                packed.weight = packed.weight.moved(fn)
        return self

    def fused(self) -> dict[str, Parts]:
        """Return the logical matrices of the weights that hold several, by parameter."""
        return {}

    def project(self, group: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [rows, D] through all layers of a group, side by side; residual is added."""
        if self.packed and not torch.is_grad_enabled():
            packed = self.packed[group]
            if self._replaced(packed, self._layers(group)):
                if packed.rounding is not None and self._given_up(group) == list(self._names(group)):
                    self.hold(group, packed.weight)  # only a bias changed
                else:
                    self._pack_group(group, packed.rounding)
                packed = self.packed[group]
            return packed(x, residual)
        layers = self._layers(group)
        if layers[0].weight.shape[0] == 0:
            raise ConfigError(f"model: its weights were {ROUNDED}; load the one they were rounded from to train it")
        dtype = compute_dtype(x)
        weights = [layer.weight.to(dtype) for layer in layers]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias = _side_by_side(layers)
        x = x.to(dtype)
        if bias is not None:
            out = torch.nn.functional.linear(x, weight, bias.to(dtype))
            out = out if residual is None else residual + out
        else:
            out = linear(x, weight, residual)
        return added_by_adapters(layers, x, out)

    def pack(self, rounding: Rounding | None = None) -> None:
        """Pack the weights for decoding; with a rounding the layers' own weights are dropped."""
        for names in self.GROUPS:
            self._pack_group(names[0], rounding)

    def _pack_group(self, group: str, rounding: Rounding | None) -> None:
        layers = self._layers(group)
        if any(adapter_of(layer) is not None for layer in layers):
            raise ConfigError(
                "model: has LoRA adapters; merge them with `merge_adapters` before it is packed to decode"
            )
        if given_up := self._given_up(group):
            raise ConfigError(
                f"model: the weight of '{given_up[0]}' was {ROUNDED}, so that its group cannot be packed again; "
                "replace the weights of the whole group, or load the model again"
            )
        weight = torch.cat([layer.weight.detach() for layer in layers])
        if rounding is not None:
            rounded = quantise(weight, rounding)
            for layer in layers:
                layer.weight.data = weight.new_empty(0, weight.shape[1])
            self.hold(group, rounded)
            return
        parts = weight.split([layer.out_features for layer in layers])
        for layer, part in zip(layers, parts, strict=True):  # the same memory, not a copy
            layer.weight.data = part
        self.hold(group, weight)

    def hold(self, group: str, weight: Tensor | Quantised) -> None:
        """Take a group's weight, of which its layers hold the parts, or nothing where it was rounded."""
        layers = self._layers(group)
        bias = _side_by_side(layers)
        if bias is not None:
            bias = bias.detach()
            for layer, own in zip(layers, bias.split([layer.out_features for layer in layers]), strict=True):
                if layer.bias is not None:
                    layer.bias.data = own
        parts = tuple((layer.weight.detach(), None if layer.bias is None else layer.bias.detach()) for layer in layers)
        self.packed[group] = Packed(weight, bias, parts)

    def _replaced(self, packed: Packed, layers: list[nn.Linear]) -> bool:
        """Return whether a weight or bias was cast, moved, copied, replaced, added or removed since packing."""
        for layer, (weight, bias) in zip(layers, packed.parts, strict=True):
            if not (same_memory(layer.weight, weight) if packed.rounding is None else layer.weight.shape[0] == 0):
                return True
            if layer.bias is not bias and not same_memory(layer.bias, bias):  # both None, mostly
                return True
        return False

    def _given_up(self, group: str) -> list[str]:
        """Return the layers of a group whose weights were rounded and dropped."""
        return [name for name in self._names(group) if getattr(self, name).weight.shape[0] == 0]

    def _names(self, group: str) -> tuple[str, ...]:
        return next(names for names in self.GROUPS if names[0] == group)

    def _layers(self, group: str) -> list[nn.Linear]:
        return [getattr(self, name) for name in self._names(group)]


def _side_by_side(layers: Sequence[nn.Linear]) -> Tensor | None:
    """Return the biases of a group, zeros for a layer without one; None if no layer has one."""
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    )


def same_memory(given: Tensor | None, part: Tensor | None) -> bool:
    """Return whether both are the same numbers in the same memory."""
    if given is None or part is None:
        return given is part
    same = given.data_ptr() == part.data_ptr() and given.dtype == part.dtype
    return same and given.shape == part.shape and given.stride() == part.stride()
