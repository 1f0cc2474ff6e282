"""Models whose weights were rounded to few bits for decoding, on disk: our own format, and each weight in its parts.

A weight `blocks.0.mixer.query.words` (int32), `.scales` and `.minima` (bfloat16) is that of a group of layers that read
the same input, named after the first of them; see `ops/core/quantised.py`. All other parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interlace.base.errors import CheckpointError, ConfigError
from interlace.checkpoint.tensors import Entry, read_into
from interlace.layers.moe import MoE
from interlace.layers.projection import Projections
from interlace.model.config import ModelConfig
from interlace.model.model import HEAD, HybridLM
from interlace.ops.core.quantised import Quantised, Rounding, empty

KEY = "rounding"  # of config.json: how the layers' weights were rounded, and the head's
MOST_IN_A_WORD = 8  # weights


def described(model: HybridLM) -> dict[str, dict[str, int]]:
    """Return what config.json says of a rounded model."""
    assert model.rounding is not None
    layers, head = model.rounding, None if model.packed_head is None else model.packed_head.rounding
    return {"layers": layers._asdict(), **({} if head is None else {HEAD: head._asdict()})}


def tensors_of(model: HybridLM) -> Iterator[tuple[str, Tensor]]:
    """Return all tensors of a rounded model by stored name."""
    for name, parameter in model.named_parameters():
        if parameter.numel():
            yield name, parameter.detach()
    for name, weight in model.rounded_weights():
        yield from ((f"{name}.{part}", tensor) for part, tensor in weight.parts.items())


def read(
    folder: Path,
    config: ModelConfig,
    said: Any,
    entries: Mapping[str, Entry],
    dtype: torch.dtype | None,
    device: torch.device,
) -> HybridLM:
    """Return the model in a folder whose config.json has KEY.

    Args:
        said: the value of KEY.
        entries: the stored tensors by name.
        dtype: of the parameters that were not rounded; None for the stored one.

    Raises:
        CheckpointError: the files do not hold such a model.
    """
    layers, head = _roundings(folder, said)
    model = HybridLM(config, device="meta").eval()
    weights, places = _dropped(model, layers, head)
    whole = {name: tuple(p.shape) for name, p in model.named_parameters() if p.numel()}
    parts = {f"{name}.{part}": t for name, w in weights.items() for part, t in w.parts.items()}
    _check(folder, {**whole, **{name: tuple(t.shape) for name, t in parts.items()}}, parts, entries)
    made = {name: empty(weight.shape, weight.rounding) for name, weight in weights.items()}
    for name, weight in made.items():
        for part, target in weight.parts.items():
            read_into(entries[f"{name}.{part}"], f"{name}.{part}", target)
    _fill(model, whole, entries, dtype, device)
    for name, place in places.items():
        place(made[name].to(device))
    return model


def stored_rounding(folder: Path, table: Mapping[str, Any]) -> Rounding | None:
    """Return how the layers of a folder were rounded, as its config.json says; None if they were not."""
    return _roundings(folder, table[KEY])[0] if KEY in table else None


def on_paper(config: ModelConfig, dtype: torch.dtype, layers: Rounding, head: Rounding) -> HybridLM:
    """Return a rounded model on the meta device: its sizes and no numbers."""
    model = HybridLM(config, device="meta").to(dtype).eval()
    weights, places = _dropped(model, layers, head)
    for name, weight in weights.items():
        places[name](weight)
    return model


def _roundings(folder: Path, said: Any) -> tuple[Rounding, Rounding | None]:
    found = []
    try:
        for table in (said["layers"], *([said[HEAD]] if HEAD in said else [])):
            found.append(Rounding(**table))
            found[-1].check()
    except (ConfigError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {KEY} is damaged ({error}); quantise again") from None
    return found[0], found[1] if len(found) > 1 else None


def _dropped(
    model: HybridLM, layers: Rounding, head: Rounding | None
) -> tuple[dict[str, Quantised], dict[str, Callable[[Quantised], None]]]:
    """Drop the weights that are stored in parts; return those by name, and by name what takes each when it is read."""
    weights: dict[str, Quantised] = {}
    places: dict[str, Callable[[Quantised], None]] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, Projections):
            for names in module.GROUPS:
                group = [getattr(module, name) for name in names]
                shape = (sum(layer.weight.shape[0] for layer in group), group[0].weight.shape[1])
                weights[f"{prefix}.{names[0]}"] = empty(shape, layers, "meta")
                places[f"{prefix}.{names[0]}"] = partial(module.hold, names[0])
                for layer in group:
                    layer.weight = nn.Parameter(layer.weight.new_empty(0, shape[1]))
        if isinstance(module, MoE):
            for name in module.MATRICES:
                weight = getattr(module, name)
                weights[f"{prefix}.{name}"] = empty(tuple(weight.shape), layers, "meta")
                places[f"{prefix}.{name}"] = partial(module.hold, name)
                setattr(module, name, nn.Parameter(weight.new_empty(0, *weight.shape[1:])))
    if head is not None:
        weights[HEAD] = empty(tuple(model.head.weight.shape), head, "meta")
        places[HEAD] = model.hold_head
        if not model.config.tied_embeddings:
            model.head.weight = nn.Parameter(model.head.weight.new_empty(0, model.config.width))
    return weights, places


def _check(
    folder: Path, wanted: Mapping[str, tuple[int, ...]], parts: Iterable[str], entries: Mapping[str, Entry]
) -> None:
    codes = {"words": "I32", "scales": "BF16", "minima": "BF16"}
    for name, shape in wanted.items():
        entry = entries.get(name)
        fault = None
        if entry is None:
            fault = "is missing"
        elif entry.shape != shape:
            fault = f"has shape {list(entry.shape)}, but config.json asks for {list(shape)}"
        elif name in parts and entry.code != (code := codes[name.rpartition(".")[2]]):
            fault = f"holds {entry.code}, but must hold {code}"
        if fault is not None:
            raise CheckpointError(f"{folder}: tensor '{name}' {fault}; quantise again")
    if strange := sorted(set(entries) - set(wanted)):
        raise CheckpointError(f"{folder}: tensor '{strange[0]}' belongs to no layer; quantise again")


def _fill(
    model: HybridLM,
    whole: Mapping[str, tuple[int, ...]],
    entries: Mapping[str, Entry],
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Allocate and read the parameters that were not rounded; those that a cast leaves in float32 stay there."""
    model.to(dtype or entries["embedding.weight"].dtype)
    for prefix, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            stored = entries[full].dtype if full in whole else parameter.dtype
            keeps = dtype is None and stored.itemsize > parameter.dtype.itemsize and stored.is_floating_point
            made = torch.empty(parameter.shape, dtype=stored if keeps else parameter.dtype, device=device)
            if full in whole:
                read_into(entries[full], full, made)
            module._parameters[name] = nn.Parameter(made, requires_grad=parameter.requires_grad)
    if model.config.tied_embeddings:
        model.head.weight = model.embedding.weight
