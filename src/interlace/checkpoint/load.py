"""Load a model: it is laid out empty, and each stored tensor is read straight into its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interlace.base.errors import CheckpointError, InterlaceError, nearest
from interlace.checkpoint import rounded
from interlace.checkpoint.adapter import base_of, known_base, merge_stored
from interlace.checkpoint.families import own
from interlace.checkpoint.families.registry import FAMILIES
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.checkpoint.fingerprint import weights_hash
from interlace.checkpoint.folder import GENERATION, alongside, is_adapter, read_config, read_entries, resolve
from interlace.checkpoint.names import unknown_name
from interlace.checkpoint.quantised import refuse_quantised
from interlace.checkpoint.rows import published_shape, row_count, rows_of
from interlace.checkpoint.special import generation_config, special_tokens
from interlace.checkpoint.tensors import WEIGHTS, Entry, read_into, same_values
from interlace.data.tokenizer import TOKENIZER, Tokenizer
from interlace.model.config import ModelConfig
from interlace.model.device import check_dtype, resolve_device
from interlace.model.model import HybridLM, Source
from interlace.model.sizes import sizes

LARGEST = 1 << 34  # of any number that a model is built from

SLIP = 0.85  # how alike a misspelt model_type is; jamba is not mamba, nor lfm2 olmo2


def load(source: str | Path, dtype: torch.dtype | None = None, device: Any = None) -> HybridLM:
    """The model in a folder (a checkpoint, a run folder, or a hub id), with its tokenizer if it has one.

    Args:
        source: a folder, a run folder (its newest checkpoint), or a hub id such as "allenai/Olmo-Hybrid-7B".
        dtype: of the weights; None for the stored one. A_log and dt_bias are float32 at least, always.
        device: where the weights go; None for the CPU.

    Raises:
        CheckpointError: the folder is damaged, unsafe, or not of a known family.
        ConfigError: there is no such device, or no such dtype of weights.
    """
    device = resolve_device(device)
    check_dtype(dtype)
    folder = resolve(source)
    if is_adapter(folder):
        return load_merged(_its_base(folder), folder, dtype, device)
    family, config, raw = describe(folder)
    files = alongside(folder)
    tokenizer = (
        Tokenizer.from_files({n: p for n, p in files.items() if n != GENERATION}) if TOKENIZER in files else None
    )
    check_vocabulary(folder, tokenizer, config)
    entries = read_entries(folder)
    if family is own.FAMILY and rounded.KEY in raw:
        check_sizes(folder, config, entries, rounded.MOST_IN_A_WORD)
        model = rounded.read(folder, config, raw[rounded.KEY], entries, dtype, device)
        model.tokenizer, model.source = tokenizer, _source(family, folder, files, tokenizer)
        return model
    refuse_quantised(folder, family.loaded(entries))
    check_sizes(folder, config, entries)
    plan = match(family, config, entries)
    _check_tied_head(family, config, entries, plan)
    stored = next(entries[name].dtype for name, slots in plan.items() if slots == (Slot("embedding.weight"),))
    wide: dict[str, torch.dtype] = {}  # by parameter, what holds all that is stored of it
    for name, slots in plan.items():
        for slot in slots:
            wide[slot.name] = torch.promote_types(entries[name].dtype, wide.get(slot.name, entries[name].dtype))
    model = empty_model(config, dtype or stored, device, wide if dtype is None else {})
    parameters = dict(model.named_parameters())
    for name, slots in plan.items():
        done = 0
        for slot in slots:
            target = rows_of(parameters[slot.name], slot)
            read_into(entries[name], name, target, done)
            done += target.numel()
    model.tokenizer = tokenizer
    model.source = replace(
        _source(family, folder, files, tokenizer),
        dtypes={name: entries[name].dtype for name in plan},
        tensors={name: _read_kept(entry, name, dtype) for name, entry in entries.items() if family.keeps(name)},
        keys={key: raw[key] for key in family.kept_keys if key in raw},
    )
    return model.eval()


def _source(family: Family, folder: Path, files: Mapping[str, Path], tokenizer: Tokenizer | None) -> Source:
    beside = {n: p.read_bytes() for n, p in files.items() if tokenizer is None or n not in tokenizer.files}
    return Source(family.model_type, {}, {}, {}, beside, generation_config(folder))


def load_merged(base: str | Path, adapter: Path, dtype: torch.dtype | None = None, device: Any = None) -> HybridLM:
    """Return the model in `base` with the weights that an adapter adds to it, and the adapter's tokenizer.

    Raises:
        CheckpointError: one of the two is damaged, or the adapter was trained beside another model.
    """
    folder = resolve(base)
    known = known_base(adapter)
    if known and known != weights_hash(folder):
        raise CheckpointError(
            f"{adapter}: was trained beside another checkpoint than {folder} (its hash differs); name that one: "
            f"interlace merge CHECKPOINT {adapter} --out FOLDER"
        )
    model = load(folder, dtype, device)
    assert model.source is not None
    family = next(f for f in FAMILIES if f.model_type == model.source.model_type)
    merge_stored(model, family, adapter)
    files = alongside(adapter)
    if TOKENIZER in files:
        model.tokenizer = Tokenizer.from_files({n: p for n, p in files.items() if n != GENERATION})
        check_vocabulary(adapter, model.tokenizer, model.config)
    return model


def _its_base(adapter: Path, weights: bool = True) -> Path:
    """Return the folder of the model that an adapter stands beside.

    Raises:
        CheckpointError: it is not there, or is the adapter itself.
    """
    base = base_of(adapter)
    try:
        folder = resolve(base, weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter}: is a LoRA adapter of {base!r}, which cannot be read: {error}; name where it lies: "
            f"interlace merge CHECKPOINT {adapter} --out FOLDER"
        ) from None
    if folder.resolve() == adapter.resolve():
        raise CheckpointError(f"{adapter}: base_model_name_or_path is the adapter itself; name the model beside it")
    return folder


def check_vocabulary(folder: Path, tokenizer: Tokenizer | None, config: ModelConfig) -> None:
    """Check that a tokenizer's own ids have rows in the embedding; tokens that were added to it may lie beyond.

    Raises:
        CheckpointError: one lies beyond.
    """
    if tokenizer is None or tokenizer.own_vocabulary <= config.vocabulary:
        return
    added = tokenizer.fast.get_added_tokens_decoder()  # some files name a token among its model's as well
    largest = max((i for i in tokenizer.fast.get_vocab(with_added_tokens=False).values() if i not in added), default=0)
    if largest >= config.vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {largest}, but the model's vocabulary is "
            f"{config.vocabulary}; they do not belong together"
        )


def check_sizes(folder: Path, config: ModelConfig, entries: Mapping[str, Entry], in_a_word: int = 1) -> None:
    """Refuse a config that asks for several times what the files hold, before anything is laid out.

    in_a_word: weights in an element of what is stored.
    """
    asked, held = sizes(config, contexts=()).total, in_a_word * sum(entry.elements for entry in entries.values())
    if asked > 4 * held:
        raise CheckpointError(
            f"{folder / 'config.json'}: asks for {asked:,} parameters, but the files hold {held:,} numbers; "
            "they do not belong together"
        )


def _check_tied_head(family: Family, config: ModelConfig, entries: Mapping[str, Entry], plan: Slots) -> None:
    """Check that a head that is stored although it is tied is the embedding."""
    head = next((name for name in family.optional(config) & set(entries) if name.endswith("lm_head.weight")), None)
    if head is None or not config.tied_embeddings:
        return
    embedding = next(name for name, slots in plan.items() if slots == (Slot("embedding.weight"),))
    if not same_values((head, entries[head]), (embedding, entries[embedding])):
        raise CheckpointError(
            f"{entries[head].path}: config.json ties the head to the embedding, but '{head}' differs from "
            f"'{embedding}'; set tie_word_embeddings to false, or remove one of them"
        )


def _read_kept(entry: Entry, name: str, dtype: torch.dtype | None) -> Tensor:
    target = torch.empty(entry.shape, dtype=(dtype or entry.dtype) if entry.code in WEIGHTS else entry.dtype)
    read_into(entry, name, target)
    return target


def describe(folder: Path) -> tuple[Family, ModelConfig, Mapping[str, Any]]:
    """Return the family of a folder, our config of it and the part of config.json that it is, without its weights.

    Of an adapter: those of the model that it stands beside.
    """
    if is_adapter(folder):
        return describe(_its_base(folder, weights=False))
    raw = read_config(folder)
    families = {kind: f for f in FAMILIES for kind in (f.model_type, *f.also)}
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        near, known = nearest(str(kind), families, SLIP), ", ".join(sorted(families))
        advice = f"{near}; known: {known}" if near.startswith("did you mean") else f"known: {known}"
        code = "; the code that auto_map names is never run" if raw.get("auto_map") else ""
        raise CheckpointError(f"{folder / 'config.json'}: model_type {kind!r} is not supported{code}; {advice}")
    family = families[kind]
    try:
        text = family.text(raw)
        config = family.read_config(raw)
        _check_numbers(folder / "config.json", config.to_dict())
        tokens = special_tokens(folder, raw, text, config.vocabulary)
        return family, config.model_copy(update={"tokens": tokens}), text
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        if isinstance(error, InterlaceError):
            raise
        raise CheckpointError(
            f"{folder / 'config.json'}: a value is not what {kind} has there ({type(error).__name__}: {error}); "
            "compare it with the released config"
        ) from None


def _check_numbers(path: Path, table: Mapping[str, Any]) -> None:
    """Refuse sizes that no machine holds, in what the model is built from."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            _check_numbers(path, value)
        elif isinstance(value, int) and value > LARGEST and key != "max_positions":
            raise CheckpointError(f"{path}: {key} = {value:,} is absurd; the config is damaged or hostile")


def empty_model(config: ModelConfig, dtype: torch.dtype, device: Any, stored: Mapping[str, torch.dtype]) -> HybridLM:
    """Return a model whose parameters are allocated and not yet written.

    Parameters that no matrix product reads keep the dtype in `stored` where that is wider than the model's.
    """
    model = HybridLM(config, device="meta")
    model.to(dtype)
    for prefix, module in model.named_modules():
        product = isinstance(module, nn.Linear | nn.Embedding)
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                own = parameter.dtype
                kept = own if product else stored.get(f"{prefix}.{name}", own)
                kept = kept if kept.is_floating_point and kept.itemsize > own.itemsize else own
                empty = torch.empty(parameter.shape, dtype=kept, device=device)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    if config.tied_embeddings:
        model.head.weight = model.embedding.weight
    return model


def match(family: Family, config: ModelConfig, entries: Mapping[str, Entry]) -> Slots:
    """Return stored name to slots, such that every element of every parameter is given exactly once.

    Raises:
        CheckpointError: a tensor is missing, unknown, given twice, or has another shape.
    """
    if any(name.endswith(".words") for name in entries):
        folder = next(iter(entries.values())).path.parent
        raise CheckpointError(
            f"{folder}: its weights were rounded to few bits for decoding (`interlace quantise`); take the checkpoint "
            "that they were rounded from"
        )
    slots, optional = family.slots(config), family.optional(config)
    known = {**slots, **family.aliases(config, {n: e.shape for n, e in entries.items()})}
    shapes = {n: tuple(p.shape) for n, p in HybridLM(config, device="meta").named_parameters()}
    plan, given = {}, dict.fromkeys(shapes, 0)
    loaded = {name: entry for name, entry in family.loaded(entries).items() if name not in optional}
    for name, entry in loaded.items():
        if name not in known:
            raise CheckpointError(f"{entry.path}: {unknown_name(name, list(loaded), {*known, *optional}, family)}")
        want = published_shape(known[name], shapes)
        if entry.shape != want:
            raise CheckpointError(
                f"{entry.path}: tensor '{name}' has shape {list(entry.shape)}, but config.json asks for {list(want)}"
            )
        if entry.code not in WEIGHTS:
            raise CheckpointError(
                f"{entry.path}: tensor '{name}' holds {entry.code}, but weights must be one of {', '.join(WEIGHTS)}; "
                "take the release whose weights are not quantised"
            )
        plan[name] = known[name]
        for slot in known[name]:
            given[slot.name] += row_count(slot, shapes)
    for parameter, rows in given.items():
        wanted = row_count(Slot(parameter), shapes)
        if rows != wanted:
            names = [n for n, parts in slots.items() if any(s.name == parameter for s in parts) and n not in plan]
            name = names[0] if names else parameter
            fault = f"tensor '{name}' is missing" if rows < wanted else f"'{parameter}' is given twice"
            raise CheckpointError(f"{next(iter(entries.values())).path.parent}: {fault}")
    return plan
