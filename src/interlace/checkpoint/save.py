"""Save a model: the same model gives the same bytes, under the names of the first family that can express it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import CheckpointError
from interlace.base.files import new_folder, user_path
from interlace.checkpoint import rounded
from interlace.checkpoint.families import own
from interlace.checkpoint.families.registry import FAMILIES
from interlace.checkpoint.family import Family
from interlace.checkpoint.folder import BESIDE, GENERATION, INDEX, SINGLE, WEIGHTS
from interlace.checkpoint.rows import published_shape, rows_of
from interlace.checkpoint.tensors import Planned, planned, write_planned
from interlace.layers.low_rank import adapters
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM, Source

LOG = logging.getLogger("interlace")
SHARD_BYTES = 5_000_000_000


def save(model: HybridLM, folder: str | Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json, safetensors (sharded past `shard_bytes`) and the tokenizer's files.

    A model that a published family can express is saved in its released names, which `transformers` opens without our
    code. The family that it was loaded from comes first. Any other model is saved in our own format. Tensors are
    written in the dtypes that they were loaded from, if that loses nothing of any.

    Published formats do not hold what only initial values are drawn from (`decay_range`, `step_range`, `step_floor`): a
    model loaded again has our defaults there.

    A model whose weights were rounded for decoding is saved as it is, in our own format.

    Raises:
        CheckpointError: the model has LoRA adapters.
        Failure: the disk refuses; an earlier checkpoint of that name is left as it was.
    """
    with new_folder(user_path(folder, CheckpointError), stale=(*WEIGHTS, *BESIDE)) as partial:
        write_model(model, partial, shard_bytes)


def write_model(model: HybridLM, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the files of a model into a folder that exists."""
    if next(adapters(model), None) is not None:
        raise CheckpointError("model: has LoRA adapters, which this format does not hold; call `merge_adapters` first")
    if model.rounding is not None:
        _write_rounded(model, folder, shard_bytes)
        return
    source = model.source
    family, config = family_of(model.config, None if source is None else source.model_type)
    _say_another_format(family, source)
    if source is not None and source.model_type == family.model_type:
        config = {**source.keys, **config}
    _write(folder, document(family, config, model.dtype), [planned(*x) for x in _tensors(model, family)], shard_bytes)
    _write_beside(model, folder)


def _write_rounded(model: HybridLM, folder: Path, shard_bytes: int) -> None:
    config = {**own.write_config(model.config), rounded.KEY: rounded.described(model)}
    tensors = [planned(name, tuple(tensor.shape), tensor) for name, tensor in rounded.tensors_of(model)]
    _write(folder, document(own.FAMILY, config, model.dtype), tensors, shard_bytes)
    _write_beside(model, folder)


def _write(folder: Path, config: dict[str, Any], tensors: Sequence[Planned], shard_bytes: int) -> None:
    """Write config.json and the weights."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards = in_shards(tensors, shard_bytes)
    for name, shard in shards.items():
        write_planned(folder / name, shard)
    if len(shards) > 1:
        (folder / INDEX).write_text(json.dumps(index_of(shards), indent=2) + "\n", encoding="utf-8")


def _write_beside(model: HybridLM, folder: Path) -> None:
    """Write the tokenizer's files, and those that lay beside the weights that the model came from."""
    for name, raw in {} if model.source is None else model.source.files.items():
        if model.tokenizer is None or name == GENERATION:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(raw)
    if model.tokenizer is not None:
        model.tokenizer.write(folder)


def write_description(model: HybridLM, folder: Path) -> None:
    """Write config.json and the tokenizer's files of a model whose weights are elsewhere, into a folder that exists."""
    family, config = family_of(model.config, None if model.source is None else model.source.model_type)
    text = json.dumps(document(family, config, model.dtype), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    if model.tokenizer is not None:
        model.tokenizer.write(folder)


def _say_another_format(family: Family, source: Source | None) -> None:
    """Log in which format a model is saved if its own family, or any published one, cannot express it."""
    if source is None:
        if family.architecture is None:
            LOG.info("config.json: no published family says this model; saved in our own format")
    elif family.model_type != source.model_type:
        now = "our own format, which transformers does not open" if family.architecture is None else family.model_type
        LOG.warning("config.json: %s has no setting for a part of this model; saved as %s", source.model_type, now)


def document(family: Family, config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return config.json."""
    head = {"architectures": [family.architecture]} if family.architecture else {}
    return {**head, "model_type": family.model_type, "dtype": str(dtype).removeprefix("torch."), **config}


def index_of(shards: Mapping[str, Sequence[Planned]]) -> dict[str, Any]:
    """Return model.safetensors.index.json: the file of each tensor."""
    where = {p.name: name for name, shard in shards.items() for p in shard}
    total = sum(p.nbytes for shard in shards.values() for p in shard)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def family_of_model(model: HybridLM) -> Family:
    """Return the family that saves a model."""
    return family_of(model.config, None if model.source is None else model.source.model_type)[0]


def family_of(config: ModelConfig, preferred: str | None = None) -> tuple[Family, dict[str, object]]:
    """Return the family that saves a config, the preferred one if it can, and the config as that family writes it."""
    for family in sorted(FAMILIES, key=lambda f: f.model_type != preferred):
        published = family.write_config(config)
        if published is not None:
            return family, published
    raise AssertionError("our own format expresses every model")


def _tensors(model: HybridLM, family: Family) -> list[tuple[str, tuple[int, ...], Tensor]]:
    parameters = dict(model.named_parameters())
    shapes = {n: tuple(p.shape) for n, p in parameters.items()}
    source = model.source if model.source is not None and model.source.model_type == family.model_type else None
    found = []
    for name, slots in family.slots(model.config).items():
        parts = [rows_of(parameters[slot.name].detach(), slot) for slot in slots]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        found.append((name, published_shape(slots, shapes), tensor))
    if source is not None:
        narrow = [_narrowed(tensor, source.dtypes.get(name, tensor.dtype)) for name, _, tensor in found]
        if None not in narrow:  # else some weights would be wider than others
            found = [(name, shape, x) for (name, shape, _), x in zip(found, narrow, strict=True) if x is not None]
    kept = {} if source is None else source.tensors
    return found + [(name, tuple(tensor.shape), tensor) for name, tensor in kept.items()]


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the tensor in a narrower dtype; None if that does not hold all its values."""
    if dtype.itemsize >= tensor.dtype.itemsize:
        return tensor
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else None


def in_shards(tensors: Sequence[Planned], limit: int) -> dict[str, list[Planned]]:
    """Return the tensors by file; each file has at most `limit` bytes unless one tensor is larger."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for item in tensors:
        if shards[-1] and size + item.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, start=1)}
