"""What rounding a model's weights costs on a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from interlace.base.errors import ConfigError
from interlace.evaluate.bits_per_byte import score_text
from interlace.generation.pack import pack_for_decoding
from interlace.model.model import HybridLM
from interlace.ops.core.quantised import Rounding


@dataclass(frozen=True)
class RoundingLoss:
    """Bits per byte of a text before its model's weights were rounded, and after."""

    before: float
    after: float

    @property
    def said(self) -> str:
        """The same in words."""
        return f"{self.after:.4f} bits per byte instead of {self.before:.4f} ({self.after - self.before:+.4f})"

    def table(self, weights: str) -> dict[str, float]:
        """Return plain data; `weights` names the rounding."""
        lost = self.after - self.before
        return {"bits_per_byte": self.before, f"bits_per_byte_{weights}": self.after, "bits_per_byte_lost": lost}


def rounding_loss(model: HybridLM, rounding: Rounding | None, text: Path) -> RoundingLoss:
    """Score a text, round the model's weights, and score it again. The model is changed in place.

    Raises:
        ConfigError: the weights were rounded before.
        DataError: the text cannot be scored.
    """
    if model.rounding is not None:
        raise ConfigError(
            "weights_loss: the weights were rounded before; name the checkpoint that they were rounded from"
        )
    before = score_text(model, text)
    return RoundingLoss(before, score_text(pack_for_decoding(model, rounding), text))
