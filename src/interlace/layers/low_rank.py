"""Low-rank adapters (LoRA): a trained product B A, which is added to a frozen weight.

An adapter is a module beside the weight that it belongs to: that of `query.weight` is `query.weight_adapter`, that of
the experts' `first` is `first_adapter`. Whoever multiplies by such a weight asks here for what is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

SUFFIX = "_adapter"


class LowRank(nn.Module):
    """scale B A for a weight [..., outputs, inputs]; of experts, one for each. B starts at zero.

    Source: Hu et al., "LoRA", arXiv 2106.09685; initial values as in huggingface/peft.

    Attributes:
        A: float32 [..., rank, inputs].
        B: float32 [..., outputs, rank].
        scale: alpha / rank.
        dropout: share of the inputs that A does not see in training; experts and weights that are read as a whole have
            none.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, dropout: float = 0.0):
        """weight: on whose device the adapter is made; its values are not looked at."""
        super().__init__()
        *lead, outputs, inputs = weight.shape
        empty = weight.new_empty
        self.A = nn.Parameter(empty(*lead, rank, inputs, dtype=torch.float32))
        self.B = nn.Parameter(torch.zeros_like(empty(*lead, outputs, rank, dtype=torch.float32)))
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        if weight.device.type != "meta":
            nn.init.uniform_(self.A, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank

    def _apply(self, fn: object, recurse: bool = True) -> LowRank:
        """Move with the model; stay float32 in a cast."""
        A, B = self.A.data, self.B.data
        super()._apply(fn, recurse)
        for parameter, before in ((self.A, A), (self.B, B)):
            if parameter.dtype.itemsize < 4:
                parameter.data = before.to(parameter.device)
        return self

    def delta(self) -> Tensor:
        """Return what is added to the weight, in the dtype of A."""
        return self.scale * (self.B @ self.A)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [rows, inputs] to what is added to the product with the weight, [rows, outputs], in x's dtype."""
        seen = nn.functional.dropout(x, self.dropout) if self.training and self.dropout else x
        return self.scale * ((seen @ self.A.to(x.dtype).T) @ self.B.to(x.dtype).T)


def adapter_of(owner: nn.Module, name: str = "weight") -> LowRank | None:
    """Return the adapter of a module's weight, or None."""
    found = owner._modules.get(name + SUFFIX)
    return found if isinstance(found, LowRank) else None


def adapt(owner: nn.Module, name: str, rank: int, alpha: float, dropout: float = 0.0) -> LowRank:
    """Put an adapter beside a module's weight; return it."""
    adapter = LowRank(owner.get_parameter(name), rank, alpha, dropout)
    owner.add_module(name + SUFFIX, adapter)
    return adapter


def adapters(model: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """Yield (name of the weight, its adapter) of all adapters, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            yield name.removesuffix(SUFFIX), module


def kept_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a checkpoint of training holds: all, or those of the adapters if there are some."""
    found = dict(model.named_parameters())
    adapted = {f"{name}{SUFFIX}.{own}": p for name, a in adapters(model) for own, p in a.named_parameters()}
    return adapted or found


def with_adapter(owner: nn.Module, name: str = "weight") -> Tensor:
    """Return a weight with what its adapter adds, for a product that takes the weight as a whole."""
    weight: Tensor = getattr(owner, name)
    adapter = adapter_of(owner, name)
    return weight if adapter is None else weight + adapter.delta().to(weight.dtype)


def added_by_adapters(layers: Sequence[nn.Linear], x: Tensor, out: Tensor) -> Tensor:
    """Return out [rows, outputs of all layers side by side] with what the layers' adapters add, given their input."""
    found = [adapter_of(layer) for layer in layers]
    if all(adapter is None for adapter in found):
        return out
    pieces = [
        x.new_zeros(1, layer.out_features).expand(x.shape[0], -1) if adapter is None else adapter(x)
        for layer, adapter in zip(layers, found, strict=True)
    ]
    return out + (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1))


@torch.no_grad()
def merge_adapters(model: nn.Module) -> int:
    """Add every adapter to its weight and remove it; sums are float32 at least. Return how many there were."""
    found = list(adapters(model))
    for name, adapter in found:
        path, _, own = name.rpartition(".")
        owner = model.get_submodule(path)
        weight = owner.get_parameter(own)
        weight.copy_(weight.to(torch.promote_types(weight.dtype, torch.float32)) + adapter.delta())
        delattr(owner, own + SUFFIX)
    return len(found)
