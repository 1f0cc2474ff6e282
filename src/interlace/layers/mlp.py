"""The SwiGLU feed-forward layer."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from interlace.layers.base import Closed
from interlace.layers.projection import Projections
from interlace.ops.swiglu.dispatch import swiglu


class MLPConfig(Closed):
    """down(SiLU(gate x) * up x), without biases.

    Attributes:
        width: the hidden size.
    """

    width: int = Field(gt=0)

    def parameters(self, width: int) -> int:
        """Parameters at the model's width."""
        return 3 * width * self.width

    def flops_per_token(self, width: int) -> float:
        """Forward FLOPs per token."""
        return 2.0 * self.parameters(width)


class MLP(Projections):
    """Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202."""

    GROUPS = (("gate", "up"), ("down",))

    def __init__(self, width: int, config: MLPConfig):
        """width: the model's."""
        super().__init__()
        self.gate = nn.Linear(width, config.width, bias=False)
        self.up = nn.Linear(width, config.width, bias=False)
        self.down = nn.Linear(config.width, width, bias=False)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[total, D] to the same; residual is added."""
        return self.project("down", swiglu(self.project("gate", x)), residual)
