"""Merge a LoRA adapter into its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from interlace.base.errors import CheckpointError
from interlace.checkpoint.folder import is_adapter, resolve
from interlace.checkpoint.load import load_merged
from interlace.checkpoint.save import save
from interlace.model.model import HybridLM


def merge(base: str | Path, adapter: str | Path, out: Path, dtype: torch.dtype | None = None) -> HybridLM:
    """Write the model in `base` with what an adapter adds to its weights as a checkpoint like any other.

    Args:
        base: a folder, a run folder or a hub id, as for `load`.
        adapter: a folder that `peft` or a run of training with LoRA wrote, or such a run's folder.
        dtype: of the weights; None for the stored one. Sums are float32 at least.

    Raises:
        CheckpointError: one of the two is damaged, or the adapter was trained beside another model.
    """
    folder = resolve(adapter)
    if not is_adapter(folder):
        raise CheckpointError(f"{adapter}: holds a model and no LoRA adapter; there is nothing to merge")
    model = load_merged(base, folder, torch.float32 if dtype == torch.float32 else None)
    if dtype is not None:
        model.to(dtype)  # the sums are rounded once
        assert model.source is not None
        model.source = replace(model.source, dtypes={})
    save(model, out)
    return model
