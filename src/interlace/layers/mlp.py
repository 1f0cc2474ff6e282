"""The SwiGLU feed-forward layer."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import silu

from interlace.layers.base import Closed


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


class MLP(nn.Module):
    """Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202."""

    def __init__(self, width: int, config: MLPConfig):
        """width: the model's."""
        super().__init__()
        self.gate = nn.Linear(width, config.width, bias=False)
        self.up = nn.Linear(width, config.width, bias=False)
        self.down = nn.Linear(config.width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[total, D] to the same."""
        return self.down(silu(self.gate(x)) * self.up(x))
