"""Rotary positions, with the length extensions that published checkpoints use."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class RopeConfig(BaseModel):
    """Frequencies theta^(-2i/dim), as they are or stretched.

    Attributes:
        theta: the base.
        fraction: the part of each head that turns; the rest has no position.
        scaling: "none", "linear" (positions divided by factor), "yarn" (arXiv 2309.00071), "llama3" (frequencies
            slower than the original context are divided by factor, with a blend between two borders) or "dynamic"
            (beyond the original context the base grows with a token's own position, so that a text is read the same
            in one pass and token by token; tools that take the base of the whole prompt differ there).
        factor: by how much the context is stretched.
        original_context: tokens the model was first trained on (yarn, llama3, dynamic).
        beta_fast, beta_slow: rotations over the original context between which yarn blends.
        attention_factor: multiplies cos and sin; None for yarn's 0.1 ln(factor) + 1.
        truncate: whether yarn's blend borders are rounded to whole dimensions.
        low_frequency_factor, high_frequency_factor: llama3's borders, in turns over the original context.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    theta: float = Field(default=500_000.0, gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    scaling: Literal["none", "linear", "yarn", "llama3", "dynamic"] = "none"
    factor: float = Field(default=1.0, gt=0)
    original_context: int | None = None
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    attention_factor: float | None = None
    truncate: bool = True
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    @model_validator(mode="after")
    def _fits_its_scaling(self) -> RopeConfig:
        if self.scaling in ("yarn", "llama3", "dynamic") and not self.original_context:
            raise ValueError(f"rope.original_context: {self.scaling} needs it; set the tokens it was first trained on")
        if self.scaling == "yarn" and self.theta == 1:
            raise ValueError("rope.theta: must not be 1 with yarn, since all frequencies are then one; set another")
        return self

    def turning(self, dim: int) -> int:
        """Return how many elements of a head turn."""
        return int(dim * self.fraction)


def frequencies(rope: RopeConfig, dim: int, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Return inverse frequencies float64 [dim / 2], and the factor on cos and sin."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
    plain = 1.0 / rope.theta**exponent
    if rope.scaling == "none":
        return plain, 1.0
    if rope.scaling == "linear":
        return plain / rope.factor, 1.0
    assert rope.original_context is not None
    if rope.scaling == "llama3":
        turns = rope.original_context * plain / (2 * math.pi)
        low, high = rope.low_frequency_factor, rope.high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * kept + plain / rope.factor * (1 - kept), 1.0

    def dimension(rotations: float) -> float:  # where a frequency turns `rotations` times over the original context
        ratio = rope.original_context / (rotations * 2 * math.pi)  # type: ignore[operator]
        return dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float64, device=device) - low) / (high - low or 0.001)
    stretched = ramp.clamp(0, 1)
    blended = plain / rope.factor * stretched + plain * (1 - stretched)
    by_length = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return blended, by_length if rope.attention_factor is None else rope.attention_factor


def rotary(positions: Tensor, rope: RopeConfig, dim: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 [total, turning]; each half of the last axis holds the same angles.

    Angles are float64: at position 1,000,000 a float32 angle is off by 0.03.
    """
    device = positions.device
    wide = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    places = positions[:, None].to(wide, torch.float64)
    if rope.scaling == "dynamic":
        inverse, factor = _dynamic(places, rope, rope.turning(dim)), 1.0
    else:
        inverse, factor = frequencies(rope, rope.turning(dim), wide)
    angles = places * inverse
    cos, sin = ((f(angles) * factor).to(device, torch.float32) for f in (torch.cos, torch.sin))
    return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


def _dynamic(positions: Tensor, rope: RopeConfig, dim: int) -> Tensor:
    """Return inverse frequencies float64 [total, dim / 2] for positions [total, 1].

    Each position counts as the last token of its text so far.
    """
    assert rope.original_context is not None
    stretch = (positions + 1).clamp(min=rope.original_context) / rope.original_context
    base = rope.theta * (rope.factor * stretch - (rope.factor - 1)) ** (dim / max(dim - 2, 1))
    return base ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
