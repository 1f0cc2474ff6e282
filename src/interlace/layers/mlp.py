"""The feed-forward layer: SwiGLU, or a squared ReLU without a gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from interlace.layers.base import FeedForwardConfig
from interlace.layers.norm import NormStyle
from interlace.layers.parts import Division, check_divides, check_no_bias, columns, rows
from interlace.layers.projection import Projections
from interlace.ops.swiglu.dispatch import swiglu

Activation = Literal["swiglu", "relu2"]


def activate(hidden: Tensor, activation: str) -> Tensor:
    """SiLU(gate) up of [rows, gate and up side by side], or ReLU squared."""
    return swiglu(hidden) if activation == "swiglu" else relu(hidden).square()


class MLPConfig(FeedForwardConfig):
    """down(SiLU(gate x) * up x), or down(ReLU(up x)^2).

    Attributes:
        width: the hidden size.
        activation: "swiglu", or "relu2" (squared ReLU, no gate; Nemotron).
        bias: whether the projections have biases.
    """

    width: int = Field(gt=0)
    activation: Activation = "swiglu"
    bias: bool = False

    def check(self, width: int) -> None:
        """Accept any sizes: all fit together."""

    def divided(self, width: int, workers: int) -> Division:
        """Return the layer as several workers hold it, each some heads."""
        check_divides("width", self.width, workers)
        check_no_bias(self.bias, workers)
        names = ("gate", "up") if self.activation == "swiglu" else ("up",)
        cuts = {f"{name}.weight": rows(self.width) for name in names} | {"down.weight": columns(self.width)}
        return Division(self.model_copy(update={"width": self.width // workers}), cuts)

    def build(self, width: int, style: NormStyle) -> MLP:
        """Return the module."""
        return MLP(width, self)

    def parameters(self, width: int) -> int:
        """Count matrices and biases."""
        matrices = 3 if self.activation == "swiglu" else 2
        return matrices * width * self.width + self.bias * ((matrices - 1) * self.width + width)

    def flops_per_token(self, width: int, context: float) -> float:
        """Count two for each element of a matrix."""
        return 2.0 * (3 if self.activation == "swiglu" else 2) * width * self.width


class MLP(Projections):
    """The feed-forward layer.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202; So et al., "Primer", arXiv 2109.08668.
    """

    def __init__(self, width: int, config: MLPConfig):
        """width: the width of the model."""
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate = nn.Linear(width, config.width, bias=config.bias)
        self.up = nn.Linear(width, config.width, bias=config.bias)
        self.down = nn.Linear(config.width, width, bias=config.bias)
        self.GROUPS = (("gate", "up") if config.activation == "swiglu" else ("up",), ("down",))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, None]:
        """Map [total, D] to [total, D] with the residual added; the second result is None, as there are no experts."""
        return self.project("down", activate(self.project(self.GROUPS[0][0], x), self.activation), residual), None
