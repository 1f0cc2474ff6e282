"""Muon: momentum whose matrices are orthogonalised, each logical matrix as a whole; AdamW for all other parameters.

`torch.optim.Muon` takes two-dimensional parameters alone, iterates in bfloat16 alone, and orthogonalises a fused
weight as if it were one matrix; here experts are matrices one by one, fused weights are taken apart, and the iteration
can be float32. On a plain matrix in bfloat16 both do the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interlace.layers.parts import Parts

# Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; torch/optim/_muon.py.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
RMS = 0.2  # of an update's elements, as of AdamW's. Source: Liu et al., "Muon is Scalable", arXiv 2502.16982, 2.2.

Orthogonalise = Callable[[nn.Parameter, Tensor], Tensor]
"""(parameter, its momentum) to its direction, in the shape of the parameter."""
Momentum = Callable[[nn.Parameter], Tensor]
"""A parameter to the momentum of what lies here of it; asked once."""
Through = Callable[[Sequence[nn.Parameter], Momentum, Orthogonalise], Iterator[tuple[nn.Parameter, Tensor]]]
"""(parameters, their momenta, what is done to a whole one) to each parameter with the direction of what lies here."""


def newton_schulz(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return about U V^T of x = U S V^T, for each matrix [..., rows, columns]; x is not changed.

    The result is float32; singular values end between about 0.7 and 1.2, as Muon's authors intend.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(dtype).reshape(-1, *(x.shape[:-3:-1] if tall else x.shape[-2:]))
    y = y / y.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).reshape(x.shape).to(torch.float32)


def direction(momentum: Tensor, parts: Parts | None, dtype: torch.dtype) -> Tensor:
    """Return a weight's update [..., rows, columns] before the learning rate: each logical matrix orthogonalised.

    Each is scaled by 0.2 sqrt(max(rows, columns)), so that learning rates of AdamW serve.
    """
    matrices = [momentum] if parts is None else parts.split(momentum)
    done = [newton_schulz(m, dtype).mul_(RMS * max(m.shape[-2:]) ** 0.5) for m in matrices]
    return done[0] if parts is None else parts.join(done)


def here(
    parameters: Sequence[nn.Parameter], momentum: Momentum, whole: Orthogonalise
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Orthogonalise matrices that lie here whole, one at a time."""
    for p in parameters:
        yield p, whole(p, momentum(p))


class Uncompiled(torch.optim.Optimizer):
    """An optimizer without the wrappers of torch's compiler, which they would import: two seconds for nothing."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class Muon(Uncompiled):
    """Muon on matrices, and AdamW on the rest, as one optimizer with the groups of both."""

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        parts: Sequence[Parts | None],
        rest: torch.optim.AdamW,
        *,
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
        share: float = 1.0,
        through: Through = here,
        local: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        """Prepare the optimizer.

        Args:
            matrices: weights [..., rows, columns]; leading axes count matrices.
            parts: the logical matrices in the rows of each; None for one.
            rest: holds all other parameters.
            momentum: of the moving sum of gradients; Nesterov's is taken.
            dtype: of the iteration that orthogonalises.
            share: by which whoever sets the rate of all groups multiplies that of this one.
            through: brings matrices that are cut over several workers together.
            local: returns what lies here of a parameter or a gradient.
        """
        defaults = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum, "share": share}
        super().__init__([{"params": list(matrices)}], defaults)
        self.parts = dict(zip(matrices, parts, strict=True))
        self.dtype, self.through, self.local, self.rest = dtype, through, local, rest
        self.param_groups += rest.param_groups
        rest.state = self.state  # one state for both: it is saved and resumed as one

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; the momentum is changed by gradients alone."""
        group = self.param_groups[0]
        weights = [p for p in group["params"] if p.grad is not None]
        for p, update in self.through(weights, self._ahead, self._whole):
            self.local(p).mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
        self.rest.step()

    def _ahead(self, parameter: nn.Parameter) -> Tensor:
        """Take a gradient into the momentum; return Nesterov's look ahead."""
        assert parameter.grad is not None
        state, keep = self.state[parameter], self.param_groups[0]["momentum"]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(self.local(parameter))
        gradient, sum_ = self.local(parameter.grad), state["momentum"]
        sum_.lerp_(gradient, 1 - keep)
        return gradient.lerp(sum_, keep)

    def _whole(self, parameter: nn.Parameter, momentum: Tensor) -> Tensor:
        return direction(momentum, self.parts[parameter], self.dtype)
