"""Make a differentiable custom operator of torch from a signature and three functions.

It is one node for torch.compile, has its own backward, and gives shapes on the meta device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("interlace", "FRAGMENT")


def define(
    name: str, schema: str, function: Callable[..., Any], shapes: Callable[..., Any], device: str | None = None
) -> Callable[..., Any]:
    """Register `interlace::NAME`, an operator whose results are new tensors; return it.

    It is what `torch.library.custom_op` makes, but for two seconds: those take torch's compiler along in their first
    call, which a model that is not compiled never needs.

    Args:
        schema: in torch's language, without the name.
        function: computes the results.
        shapes: returns them with nothing in them.
        device: the type of device that `function` serves; None for any.
    """
    LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    key = "CompositeExplicitAutograd" if device is None else device.upper()
    LIBRARY.impl(name, _uncompiled(function), key)
    torch.library.register_fake(f"interlace::{name}", shapes, lib=LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.interlace, name).default
    return operator


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Give an operator of `define` its gradients, as `torch.library.register_autograd` has them."""
    torch.library.register_autograd(f"interlace::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that torch's compiler, if it was imported, does not look into."""
    kept: list[Callable[..., Any]] = []

    def call(*given: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*given)
        if not kept:
            kept.append(torch.compiler.disable(function))
        return kept[0](*given)

    return call


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of an operator.

    The inputs are written out, not taken from annotations: the shape checks of the tests wrap the functions, and hide
    their annotations from torch.

    Attributes:
        inputs: in torch's schema language, tensors first: "Tensor x, Tensor? state, bool activated".
        gradients: the inputs that have gradients, in the order in which the backward returns them.
        outputs: how many tensors come out.
        hidden: how many of them, the last ones, are kept for the backward alone.
        saved: places of the outputs that the backward is given; the hidden ones if None.
        device: the type of device that the functions serve; None for any.
    """

    inputs: str
    gradients: tuple[str, ...]
    outputs: int = 2
    hidden: int = 0
    saved: tuple[int, ...] | None = None
    device: str | None = None

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return [declared.split()[-1] for declared in self.inputs.split(", ")]

    @property
    def tensors(self) -> int:
        """How many of the inputs are tensors."""
        return sum(declared.startswith("Tensor") for declared in self.inputs.split(", "))

    @property
    def kept(self) -> tuple[int, ...]:
        """Places of the outputs that the backward is given."""
        return tuple(range(self.outputs - self.hidden, self.outputs)) if self.saved is None else self.saved

    def schemas(self) -> tuple[str, str]:
        """Return torch's schemas of the operator and of its backward."""
        due = [f"Tensor{'?' if i else ''} d_{i}" for i in range(self.outputs - self.hidden)]
        given = ", ".join([*due, *(f"Tensor saved_{i}" for i in self.kept), self.inputs])
        return f"({self.inputs}) -> {_several(self.outputs)}", f"({given}) -> {_several(len(self.gradients))}"


def custom_op(
    name: str,
    signature: Signature,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    shapes: Callable[..., Any],
) -> Callable[..., Any]:
    """Register `interlace::NAME` and `interlace::NAME_backward`; return the operator.

    All outputs of both functions are new tensors.

    Args:
        forward: (*inputs) -> the outputs.
        backward: (*gradients of the visible outputs, *saved outputs, *inputs) -> the gradients. Gradients of outputs
            are None where nothing is due, except the first. The gradient of an absent input is an empty tensor.
        shapes: (*inputs) -> the outputs, with nothing in them.
    """
    operator_schema, backward_schema = signature.schemas()
    places = [signature.names.index(gradient) for gradient in signature.gradients]
    visible, extra = signature.outputs - signature.hidden, len(signature.kept)

    def gradients(*given: Any) -> Tensor | tuple[Tensor, ...]:
        inputs = given[visible + extra :]
        found = tuple(_like(inputs[place], inputs[0]) for place in places)
        return found if len(found) > 1 else found[0]

    operator = define(name, operator_schema, forward, shapes, signature.device)
    back = define(f"{name}_backward", backward_schema, backward, gradients, signature.device)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.save_for_backward(*(outputs[i] for i in signature.kept), *inputs[: signature.tensors])
        ctx.mark_non_differentiable(*outputs[visible:])
        ctx.set_materialize_grads(False)
        ctx.options = inputs[signature.tensors :]

    def autograd(ctx: Any, *due: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * len(signature.names)
        first, *others = due[:visible]
        if all(d is None for d in due[:visible]):
            return tuple(gradients)
        kept = ctx.saved_tensors  # once: activations that are recomputed can be unpacked once only
        saved, inputs = kept[:extra], (*kept[extra:], *ctx.options)
        if first is None:
            outputs = shapes(*inputs)
            first = torch.zeros_like(outputs[0] if isinstance(outputs, tuple) else outputs)
        found = back(first.contiguous(), *others, *saved, *inputs)
        for place, gradient in zip(places, found if isinstance(found, tuple | list) else (found,), strict=True):
            gradients[place] = None if inputs[place] is None else gradient
        return tuple(gradients)

    differentiate(name, autograd, setup_context)
    return operator


def _several(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _like(x: Tensor | None, other: Tensor) -> Tensor:
    return other.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
