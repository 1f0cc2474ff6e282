"""Our own format, for models that no published family can express: the model table of a recipe, and our names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlace.checkpoint.families import parts
from interlace.checkpoint.families.slots import whole
from interlace.checkpoint.family import Family, Slots
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate the `model` table to our config."""
    return ModelConfig.from_dict(parts.need(config, "model"), where="config.json: model")


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Translate our config to the `model` table; any model can be expressed."""
    return {"model": config.to_dict(), "vocab_size": config.vocabulary}


def slots(config: ModelConfig) -> Slots:
    """Map every parameter under its own name."""
    return whole({name: name for name, _ in HybridLM(config, device="meta").named_parameters()})


FAMILY = Family("interlace", None, read_config, write_config, slots)
