"""The optimizer: AdamW, with weight decay on matrices alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interlace.train.recipe import TrainSettings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Every parameter in exactly one group: matrices decay; embeddings, taps, norms, gates and biases do not."""
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed |= {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "MATRICES", ())}
    decayed -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW on a model's float32 master weights."""
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
