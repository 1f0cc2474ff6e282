"""What of a model is trained: all of it, all but the parts that are frozen, or adapters beside frozen weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import nn

from interlace.base.errors import ConfigError, nearest
from interlace.layers.low_rank import adapt, adapters
from interlace.layers.projection import Projections
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM
from interlace.train.recipe import LoraSettings, TrainSettings

ADAPTER_SEED = 0x10FA  # beside the recipe's seed, so that adapters are not drawn as weights are


def set_trained(model: HybridLM, settings: TrainSettings) -> None:
    """Freeze what a recipe says, or freeze all and put adapters beside it.

    Raises:
        ConfigError: a layer to adapt is not there, or nothing is left to train.
    """
    freeze(model, settings.freeze)
    if settings.lora is not None:
        for p in model.parameters():
            p.requires_grad_(False)
        add_adapters(model, settings.lora, settings.seed)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("train.freeze: leaves nothing to train; name fewer parts")


def laid_out_model(config: ModelConfig, settings: TrainSettings) -> HybridLM:
    """Return the model of a recipe without memory, frozen and adapted as it says."""
    model = HybridLM(config, device="meta")
    set_trained(model, settings)
    return model


def trained_alike(planned: nn.Module, block: nn.Module, frozen_dtype: torch.dtype | None = None) -> None:
    """Freeze and adapt a block as one of `laid_out_model` is; its frozen weights take a dtype where it has adapters."""
    found = list(adapters(planned))
    if found and frozen_dtype is not None:
        block.to(frozen_dtype)
    for name, adapter in found:
        path, _, own = name.rpartition(".")
        adapt(block.get_submodule(path), own, adapter.rank, adapter.alpha, adapter.dropout)
    wanted = {name: p.requires_grad for name, p in planned.named_parameters()}
    for name, p in block.named_parameters():
        p.requires_grad_(wanted[name])


def freeze(model: HybridLM, names: Collection[str]) -> None:
    """Let no gradient move some parts of a model, as `TrainSettings.freeze` names them."""
    for name, p in model.named_parameters():
        if part_of(model.config, name) in names:
            p.requires_grad_(False)


def part_of(config: ModelConfig, parameter: str) -> str:
    """Return the part that a parameter belongs to: "embedding", "head", "norms", or the table of its layer."""
    words = parameter.split(".")
    if words[0] != "blocks":
        return words[0] if words[0] in ("embedding", "head") else "norms"
    if words[2] not in ("mixer", "mlp"):
        return "norms"
    index = int(words[1])
    after = config.mlp_name(index) if words[2] == "mlp" else None
    return after or config.kinds[index]


def by_table(config: ModelConfig, parameter: str) -> str:
    """Return a parameter's name with its layer's table in the place of the block: "attention.query.weight"."""
    words = parameter.split(".")
    if words[0] != "blocks":
        return parameter
    inside = words[2] in ("mixer", "mlp")
    table = part_of(config, parameter) if inside else config.kinds[int(words[1])]
    return ".".join([table, *words[2 + inside :]])


def adaptable(model: HybridLM) -> Iterator[tuple[str, str, str]]:
    """Yield (module, its parameter, name such as "attention.query") of each weight that can have an adapter."""
    for path, module in model.named_modules():
        if not isinstance(module, Projections):
            continue
        linear = [f"{path}.{name}" for group in module.GROUPS for name in group]
        linear += [f"{path}.{name}" for name in module.READ_WHOLE]
        for inner in linear:
            yield inner, "weight", by_table(model.config, f"{inner}.weight").removesuffix(".weight")
        for name in getattr(module, "MATRICES", ()):
            yield path, name, by_table(model.config, f"{path}.{name}")
    yield "head", "weight", "head"


def add_adapters(model: HybridLM, lora: LoraSettings, seed: int = 0) -> None:
    """Put adapters beside the layers that a recipe names.

    Raises:
        ConfigError: one of them is not there.
    """
    found = list(adaptable(model))
    names = {name for *_, name in found}
    tables = {name.partition(".")[0] for name in names}
    for wanted in lora.layers:
        if wanted != "all" and not any(_selects(wanted, name) for name in names):
            raise ConfigError(
                f"train.lora.layers: there is no '{wanted}' in the model; {nearest(wanted, {'all', *names, *tables})}"
            )
    if "head" in lora.layers and model.config.tied_embeddings:
        raise ConfigError(
            "train.lora.layers: the head is the embedding's matrix in this model, so that it cannot be adapted alone; "
            "leave head out"
        )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed ^ ADAPTER_SEED)
        for path, own, name in found:
            usual = name != "head" and not name.endswith(".router")
            if any(_selects(wanted, name) or (wanted == "all" and usual) for wanted in lora.layers):
                adapt(model.get_submodule(path), own, lora.rank, lora.alpha, lora.dropout)


def _selects(wanted: str, name: str) -> bool:
    return name == wanted or name.startswith(wanted + ".")
