"""Loading: the model is laid out empty, and each stored tensor is read straight into its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from interlace.base.errors import CheckpointError, nearest
from interlace.checkpoint.family import Family, Slot
from interlace.checkpoint.folder import read_config, read_entries, resolve
from interlace.checkpoint.registry import FAMILIES
from interlace.checkpoint.tensors import Entry, read_into
from interlace.data.tokenizer import Tokenizer
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM


def load(source: str | Path, dtype: torch.dtype | None = None, device: Any = None) -> HybridLM:
    """The model in a folder (a checkpoint, a run folder, or a hub id), with its tokenizer if it has one.

    Args:
        source: a folder, a run folder (its newest checkpoint), or a hub id such as "allenai/Olmo-Hybrid-7B".
        dtype: of the weights; None for the stored one. A_log and dt_bias are float32 at least, always.
        device: where the weights go; None for the CPU.

    Raises:
        CheckpointError: the folder is damaged, unsafe, or not of a known family.
    """
    folder = resolve(source)
    family, config = describe(folder)
    entries = read_entries(folder)
    plan = match(family, config, entries)
    stored = next(e.dtype for name, e in entries.items() if plan.get(name) == Slot("embedding.weight"))
    model = empty_model(config, dtype or stored, device)
    parameters = dict(model.named_parameters())
    for name, slot in plan.items():
        target = parameters[slot.name]
        read_into(entries[name], name, target if slot.rows is None else target[slice(*slot.rows)])
    model.tokenizer = Tokenizer.from_folder(folder)
    if model.tokenizer is not None and model.tokenizer.vocabulary > config.vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has {model.tokenizer.vocabulary} ids, but the model's vocabulary is "
            f"{config.vocabulary}; they do not belong together"
        )
    return model.eval()


def describe(folder: Path) -> tuple[Family, ModelConfig]:
    """The family and config of a folder, without its weights."""
    raw = read_config(folder)
    families = {f.model_type: f for f in FAMILIES}
    kind = raw.get("model_type")
    if kind not in families:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {kind!r} is not supported; {nearest(str(kind), families)}"
        )
    return families[kind], families[kind].read_config(raw)


def empty_model(config: ModelConfig, dtype: torch.dtype, device: Any) -> HybridLM:
    """A model whose parameters are allocated and not yet written."""
    model = HybridLM(config, device="meta")
    model.to(dtype)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device or "cpu"))
    if config.tied_embeddings:
        model.head.weight = model.embedding.weight
    return model


def match(family: Family, config: ModelConfig, entries: dict[str, Entry]) -> dict[str, Slot]:
    """Stored name to slot, such that every element of every parameter is given exactly once.

    Raises:
        CheckpointError: a tensor is missing, unknown, given twice, or has another shape.
    """
    slots, optional = family.slots(config), family.optional(config)
    known = {**slots, **family.aliases(config, {n: e.shape for n, e in entries.items()})}
    shapes = {n: tuple(p.shape) for n, p in HybridLM(config, device="meta").named_parameters()}
    plan, given = {}, dict.fromkeys(shapes, 0)
    for name, entry in entries.items():
        if name in optional:
            continue
        if name not in known:
            raise CheckpointError(
                f"{entry.path}: tensor '{name}' does not belong to this model; {nearest(name, known)}"
            )
        slot, want = known[name], published_shape(known[name], shapes)
        if entry.shape != want:
            raise CheckpointError(
                f"{entry.path}: tensor '{name}' has shape {list(entry.shape)}, but config.json asks for {list(want)}"
            )
        plan[name] = slot
        given[slot.name] += want[0]
    for parameter, rows in given.items():
        if rows != shapes[parameter][0]:
            names = [n for n, s in slots.items() if s.name == parameter and n not in plan]
            fault = (
                f"tensor '{names[0]}' is missing" if rows < shapes[parameter][0] else f"'{parameter}' is given twice"
            )
            raise CheckpointError(f"{next(iter(entries.values())).path.parent}: {fault}")
    return plan


def published_shape(slot: Slot, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape under which a slot's tensor is stored."""
    first, *rest = shapes[slot.name]
    rows = first if slot.rows is None else slot.rows[1] - slot.rows[0]
    return (rows, 1, *rest) if slot.middle else (rows, *rest)
