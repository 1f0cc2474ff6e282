"""What an engine would make of a memory budget, on paper: no weight is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from interlace.checkpoint.rounded import on_paper
from interlace.generation.budget import Budget, sequence_bytes
from interlace.generation.pack import head_rounding
from interlace.generation.prefill import PREFILL
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM
from interlace.ops.core.quantised import Rounding


@dataclass(frozen=True)
class Plan:
    """How an engine divides its memory.

    Attributes:
        budget: as the engine has it.
        sequences: by context in tokens, how many such sequences are answered at a time; 0 where one does not fit.
    """

    budget: Budget
    sequences: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self.budget), "sequences": self.sequences}


def plan(
    config: ModelConfig,
    memory: int,
    rows: int,
    contexts: tuple[int, ...],
    dtype: torch.dtype,
    rounding: Rounding | None = None,
) -> Plan:
    """Divide memory as `Engine` does.

    Args:
        memory: bytes, the weights included.
        rows: the most sequences at a time.
        dtype: of the weights, those that are rounded apart.

    Raises:
        ConfigError: no sequence fits.
    """
    if rounding is None:
        model = HybridLM(config, device="meta").to(dtype)
    else:
        model = on_paper(config, dtype, rounding, head_rounding(rounding))
    budget = Budget.of(model, memory, rows, PREFILL)
    fits = {tokens: min(budget.rows, budget.states // sequence_bytes(model, tokens)) for tokens in contexts}
    return Plan(budget, fits)
