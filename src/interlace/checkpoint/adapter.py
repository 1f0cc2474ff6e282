"""LoRA adapters in the format of `peft`: written under the names of modules inside `transformers`, and read back.

An adapter of `peft` belongs to a tensor of the published model. That tensor may hold several of our weights one above
the other (`in_proj_qkvz`): its A then holds theirs one above the other, its B has each weight's columns in the weight's
rows, and its rank is the sum of theirs. Source of the format: huggingface/peft 0.21, src/peft/tuners/lora.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interlace.base.errors import CheckpointError, nearest
from interlace.base.files import read_json
from interlace.checkpoint.family import Family, Slot
from interlace.checkpoint.folder import ADAPTER, ADAPTER_WEIGHTS, read_table
from interlace.checkpoint.rows import row_count, rows_of
from interlace.checkpoint.tensors import WEIGHTS, Entry, read_header, read_into, write
from interlace.layers.low_rank import SUFFIX, LowRank, adapters
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM

BASE = "base.json"  # which checkpoint an adapter of ours was trained beside
PREFIX, BASE_LAYER = "base_model.model.", ".base_layer.weight"
KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)(?P<inner>\.base_layer)?\.lora_(?P<matrix>[AB])(\.default)?\.weight"
)
UNKNOWN: dict[
    str, tuple[Any, ...]
] = {  # settings of `peft` that change what an adapter adds, and their harmless values
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the base's weights
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
}


class Target(NamedTuple):
    """A tensor inside `transformers` that can have an adapter.

    Attributes:
        path: of its module, or of the experts' parameter.
        slots: our rows in it.
        experts: how many matrices it holds; 0 for a single one.
        parameter: whether `peft` has to be told of it as a parameter, and not as a module.
    """

    path: str
    slots: tuple[Slot, ...]
    experts: int = 0
    parameter: bool = False


def targets(family: Family, config: ModelConfig) -> dict[str, Target]:
    """Return all tensors of a model that can have an adapter, by path, in the order of the family's names."""
    shapes = {name: tuple(p.shape) for name, p in HybridLM(config, device="meta").named_parameters()}
    routers = {f"blocks.{i}.mlp.router.weight" for i in range(config.depth)}
    found: dict[str, Target] = {}
    for name, slots in family.slots(config).items():
        ours = slots[0].name
        if len(shapes[ours]) == 3:
            block, own = ours.rpartition(".")[::2]
            path = name if not family.experts else _experts_path(family, shapes, block, own)
            found[path] = Target(path, (Slot(ours),), shapes[ours][0], True)
        elif name.endswith(".weight") and len(shapes[ours]) == 2 and slots[0].shape is None:
            path = family.inside(name).removesuffix(".weight")
            trap = family.peft_fuses is not None and re.search(family.peft_fuses, path) is not None
            found[path] = Target(path, slots, 0, trap or ours in routers)
    return found


def _experts_path(family: Family, shapes: Mapping[str, tuple[int, ...]], block: str, own: str) -> str:
    """Return the path of experts inside `transformers`, which holds all of them in one parameter."""
    index = int(block.split(".")[1])
    gated = shapes[f"{block}.first"][1] != shapes[f"{block}.second"][2]
    first = "gate_up_proj" if gated else "up_proj"
    return f"{family.experts.format(index)}.{first if own == 'first' else 'down_proj'}"


@dataclass(frozen=True)
class Written:
    """An adapter of one target, as `peft` has it.

    Attributes:
        A: [rank, inputs], of experts [E, rank, inputs].
        B: [outputs, rank], of experts [E, outputs, rank].
        alpha: what B A is multiplied by is alpha / rank.
    """

    target: Target
    A: Tensor
    B: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rank of B A."""
        return self.A.shape[-2]


def written(model: HybridLM, family: Family, weights: Mapping[str, Tensor]) -> Iterator[Written]:
    """Yield a model's adapters as `peft` has them.

    weights: A and B of each adapter, by parameter.
    """
    own = dict(adapters(model))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for target in targets(family, model.config).values():
        names = [name for name in dict.fromkeys(slot.name for slot in target.slots) if name in own]
        if not names:
            continue
        A = [weights[f"{name}{SUFFIX}.A"].detach() for name in names]
        B = [weights[f"{name}{SUFFIX}.B"].detach() for name in names]
        adapter = own[names[0]]
        if target.experts:
            yield Written(target, A[0], B[0], adapter.alpha)
            continue
        columns = dict(zip(names, _columns(A), strict=True))
        whole = torch.zeros(sum(row_count(slot, shapes) for slot in target.slots), adapter.rank * len(names))
        for slot, rows in _places(target.slots, shapes):
            if slot.name in columns:
                whole[rows, columns[slot.name]] = rows_of(B[names.index(slot.name)].cpu(), slot)
        yield Written(target, torch.cat(A), whole, adapter.alpha * len(names))


def _columns(A: Sequence[Tensor]) -> list[slice]:
    ends = [0]
    for x in A:
        ends.append(ends[-1] + x.shape[0])
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _places(slots: Sequence[Slot], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[Slot, slice]]:
    """Yield the slots of a target with their rows in it."""
    row = 0
    for slot in slots:
        count = row_count(slot, shapes)
        yield slot, slice(row, row + count)
        row += count


def write_adapter(model: HybridLM, family: Family, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a model's adapters, and its tokenizer's files, into a folder that exists; `peft` opens it.

    Args:
        model: whose `base` says which checkpoint the adapters stand beside.
        family: that the model is saved as.
        weights: A and B of each adapter, by parameter.
    """
    found = list(written(model, family, weights))
    several = {_module(one.target) for one in found if one.target.experts and _is_first(one.target)}
    both = {_module(one.target) for one in found if one.target.experts and not _is_first(one.target)} & several
    tensors: list[tuple[str, Tensor]] = []
    for one in found:
        inner = ".base_layer" if one.target.experts and _is_first(one.target) and _module(one.target) in both else ""
        key, A, B = f"{PREFIX}{_module(one.target)}{inner}", one.A, one.B
        if one.target.experts:  # rows of A go expert by expert, columns of B rank by rank
            A, B = A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)
        tensors += [(f"{key}.lora_A.weight", A), (f"{key}.lora_B.weight", B)]
    first = found[0]
    names = {one.target.path: _peft_name(one.target) for one in found}
    dropouts = {adapter.dropout for _, adapter in adapters(model)}
    parameters = [names[one.target.path] for one in found if one.target.parameter]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0 if parameters else max(dropouts),  # which peft refuses beside parameters
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
        "target_modules": [names[one.target.path] for one in found if not one.target.parameter],
        "target_parameters": parameters or None,
        "rank_pattern": {_exactly(names[o.target.path]): o.rank for o in found if o.rank != first.rank},
        "alpha_pattern": {_exactly(names[o.target.path]): o.alpha for o in found if o.alpha != first.alpha},
    }
    (folder / ADAPTER).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / BASE).write_text(json.dumps({"fingerprint": model.base_hash}) + "\n", encoding="utf-8")
    write(folder / ADAPTER_WEIGHTS, [(name, tuple(x.shape), x) for name, x in tensors])
    if model.tokenizer is not None:
        model.tokenizer.write(folder)


def _module(target: Target) -> str:
    """Return the path of the module that holds a target."""
    return target.path.rpartition(".")[0] if target.experts else target.path


def _is_first(target: Target) -> bool:
    """Return whether a target is the experts' first parameter, whose adapter `peft` puts inside the second's."""
    return target.slots[0].name.endswith(".first")


def _peft_name(target: Target) -> str:
    return target.path + ".weight" if target.parameter and not target.experts else target.path


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}"


class Stored(NamedTuple):
    """An adapter of one target in a file.

    Attributes:
        scale: what B A is multiplied by.
        experts: how many matrices A and B hold; 0 for a single one.
    """

    target: Target
    A: tuple[str, Entry]
    B: tuple[str, Entry]
    rank: int
    scale: float

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Read A and B, float32, laid out as ours."""
        found = []
        for name, entry in (self.A, self.B):
            x = torch.empty(entry.shape)
            read_into(entry, name, x)
            found.append(x)
        A, B = found
        if E := self.target.experts:
            A, B = A.unflatten(0, (E, self.rank)), B.unflatten(1, (self.rank, E)).permute(2, 0, 1)
        return A, B.contiguous()


def stored(folder: Path, family: Family, config: ModelConfig) -> list[Stored]:
    """Return the adapters in a folder, checked against a model.

    Raises:
        CheckpointError: they are no LoRA adapters, are damaged, or are those of another model.
    """
    settings = read_adapter_config(folder)
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickle = (
            "; a pickle can run code when it is opened, save it as safetensors" if list(folder.glob("*.bin")) else ""
        )
        raise CheckpointError(f"{path}: missing{pickle or '; copy the adapter again'}")
    known = {**_one_by_one(family, config), **targets(family, config)}
    shapes = {name: tuple(p.shape) for name, p in HybridLM(config, device="meta").named_parameters()}
    pairs: dict[str, dict[str, tuple[str, Entry]]] = {}
    for name, entry in read_header(path).items():
        if name.endswith(BASE_LAYER):  # peft stores the head's own weight beside its adapter
            continue
        match = KEY.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{path}: tensor '{name}' is no A or B of a LoRA adapter; merge it by `peft` instead")
        if entry.code not in WEIGHTS:
            raise CheckpointError(f"{path}: tensor '{name}' holds {entry.code}; it must hold numbers")
        module = _known_path(match["module"], match["inner"] is not None, known, settings, family)
        if module is None:
            raise CheckpointError(
                f"{path}: tensor '{name}' belongs to no layer of this model ({family.model_type}); the adapter was "
                f"trained beside another; {nearest(match['module'], {t.path for t in known.values()})}"
            )
        pairs.setdefault(module, {})[match["matrix"]] = (name, entry)
    found = [_checked(path, known[module], pair, settings, shapes) for module, pair in pairs.items()]
    _check_all_there(path, settings, {t.path: _peft_name(t) for t in known.values()}, {s.target.path for s in found})
    if not found:
        raise CheckpointError(f"{path}: holds no adapter")
    return found


def _one_by_one(family: Family, config: ModelConfig) -> dict[str, Target]:
    """Return targets under released names: experts one by one, and what `transformers` calls otherwise."""
    names = {**family.slots(config), **family.aliases(config, {})}
    return {
        name.removesuffix(".weight"): Target(name.removesuffix(".weight"), slots)
        for name, slots in names.items()
        if name.endswith(".weight") and slots[0].shape is None
    }


def _known_path(
    module: str, inner: bool, known: Mapping[str, Target], settings: Mapping[str, Any], family: Family
) -> str | None:
    """Return which target a key of the file means; experts' keys do not say which of two parameters it is."""
    if module in known:
        return module
    experts = [path for path, target in known.items() if target.experts and _module(target) == module]
    if experts:
        named = [p for p in experts if any(_meant(p, str(t)) for t in settings.get("target_parameters") or ())]
        wanted = named if len(named) == 1 else [p for p in experts if _is_first(known[p]) == inner]
        return wanted[0] if wanted else None
    renamed = family.inside(module + ".weight").removesuffix(".weight")
    return renamed if renamed in known else None


def _meant(path: str, wanted: str) -> bool:
    return path == wanted or path.endswith("." + wanted)


def _checked(
    path: Path,
    target: Target,
    pair: Mapping[str, tuple[str, Entry]],
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> Stored:
    if missing := {"A", "B"} - pair.keys():
        there = next(iter(pair.values()))[0]
        lost = there.replace(f"lora_{'A' if 'B' in missing else 'B'}", f"lora_{missing.pop()}")
        raise CheckpointError(f"{path}: tensor '{lost}' is missing; copy the adapter again")
    (a, A), (b, B) = pair["A"], pair["B"]
    E = target.experts or 1
    ours = shapes[target.slots[0].name]
    outputs = ours[-2] if target.experts else sum(row_count(slot, shapes) for slot in target.slots)
    rank = A.shape[0] // E if A.shape else 0
    for name, entry, want in ((a, A, (rank * E, ours[-1])), (b, B, (outputs, rank * E))):
        if entry.shape != want or not rank:
            raise CheckpointError(
                f"{path}: tensor '{name}' has shape {list(entry.shape)}, but the model's layer asks for {list(want)}; "
                "the adapter was trained beside another model"
            )
    name = _peft_name(target)
    said = _pattern(settings.get("rank_pattern"), name, settings.get("r", 8))
    if said != rank:
        raise CheckpointError(
            f"{path}: tensor '{a}' has the rank {rank}, but {ADAPTER} says {said}; one of the files belongs to another "
            "adapter"
        )
    alpha = _pattern(settings.get("alpha_pattern"), name, settings.get("lora_alpha", 8))
    scale = float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)
    return Stored(target, (a, A), (b, B), rank, scale)


def _pattern(patterns: Any, name: str, usual: Any) -> Any:
    """Return the value of the first pattern that a name matches, as `peft` chooses it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return usual


def _check_all_there(path: Path, settings: Mapping[str, Any], names: Mapping[str, str], there: set[str]) -> None:
    """Raise CheckpointError where the config names a layer of which the file holds nothing."""
    wanted = settings.get("target_modules") or []
    if isinstance(wanted, str) or settings.get("layers_to_transform"):
        return
    for one in [*wanted, *(settings.get("target_parameters") or [])]:
        for target, name in names.items():
            if name == one and target not in there:
                raise CheckpointError(f"{path}: the tensors of '{one}' are missing, though {ADAPTER} names it")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json.

    Raises:
        CheckpointError: it is no LoRA adapter, or one with settings that are not known here.
    """
    settings = read_table(folder, ADAPTER, "an adapter's config")
    path = folder / ADAPTER
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {settings.get('peft_type')!r}; only 'LORA' can be merged")
    for key, harmless in UNKNOWN.items():
        if key in settings and settings[key] not in harmless:
            raise CheckpointError(f"{path}: {key} = {settings[key]!r:.80} is not supported; merge it by `peft` instead")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(key) or {}, dict):
            raise CheckpointError(f"{path}: {key} must be a table, got {settings[key]!r:.80}")
    return settings


def base_of(folder: Path) -> str:
    """Return the folder or hub id of the model that an adapter stands beside.

    Raises:
        CheckpointError: the adapter does not say.
    """
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{folder / ADAPTER}: names no base_model_name_or_path; merge it: interlace merge CHECKPOINT {folder}"
        )
    return base


def known_base(folder: Path) -> str:
    """Return the fingerprint of the model that an adapter of ours was trained beside; "" where it is not known."""
    if not (folder / BASE).is_file():
        return ""
    found = read_json(folder / BASE, "an adapter's base")
    return str(found.get("fingerprint", "")) if isinstance(found, dict) else ""


@torch.no_grad()
def merge_stored(model: HybridLM, family: Family, folder: Path) -> int:
    """Add the adapters in a folder to a model's weights; return how many there are.

    Raises:
        CheckpointError: as `stored`.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    found = stored(folder, family, model.config)
    _check_base_layers(parameters, family, model.config, folder)
    for one in found:
        A, B = one.matrices()
        delta = (one.scale * (B @ A)).to(model.device)
        if one.target.experts:
            _add(parameters[one.target.slots[0].name], delta)
            continue
        for slot, rows in _places(one.target.slots, shapes):
            _add(rows_of(parameters[slot.name], slot), delta[rows])
    return len(found)


def _check_base_layers(parameters: Mapping[str, Tensor], family: Family, config: ModelConfig, folder: Path) -> None:
    """Compare weights of the base that `peft` stored beside adapters with those that are there.

    Raises:
        CheckpointError: one differs, as after tokens were added.
    """
    path, known = folder / ADAPTER_WEIGHTS, targets(family, config)
    for name, entry in read_header(path).items():
        if not name.endswith(BASE_LAYER):
            continue
        target = known.get(name.removeprefix(PREFIX).removesuffix(BASE_LAYER))
        weight = None if target is None or len(target.slots) > 1 else parameters[target.slots[0].name]
        same = weight is not None and entry.shape == tuple(weight.shape)
        if same and weight is not None:
            theirs = torch.empty(entry.shape, dtype=weight.dtype)
            read_into(entry, name, theirs)
            same = torch.equal(theirs, weight.cpu())
        if not same:
            raise CheckpointError(
                f"{path}: tensor '{name}' differs from the model's own; the adapter was trained beside another, or "
                "tokens were added; merge it by `peft` instead"
            )


def _add(weight: Tensor, delta: Tensor) -> None:
    """Add to a weight in place; the sum is float32 at least."""
    weight.copy_(weight.to(torch.promote_types(weight.dtype, torch.float32)) + delta.reshape(weight.shape))


@torch.no_grad()
def read_adapters(model: HybridLM, family: Family, folder: Path, into: Mapping[str, Tensor]) -> None:
    """Read the adapters that `write_adapter` wrote into A and B, by parameter; the model has the same adapters.

    Raises:
        CheckpointError: as `stored`; or they are not those of this model.
    """
    own: dict[str, LowRank] = dict(adapters(model))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    left = set(own)
    for one in stored(folder, family, model.config):
        A, B = one.matrices()
        names = [name for name in dict.fromkeys(slot.name for slot in one.target.slots) if name in own]
        left -= set(names)
        if one.target.experts:
            into[f"{names[0]}{SUFFIX}.A"].copy_(A)
            into[f"{names[0]}{SUFFIX}.B"].copy_(B)
            continue
        columns = dict(zip(names, _columns([own[name].A for name in names]), strict=True))
        for name in names:
            into[f"{name}{SUFFIX}.A"].copy_(A[columns[name]])
        for slot, rows in _places(one.target.slots, shapes):
            if slot.name in columns:
                rows_of(into[f"{slot.name}{SUFFIX}.B"], slot).copy_(B[rows, columns[slot.name]])
    if left:
        raise CheckpointError(f"{folder / ADAPTER_WEIGHTS}: holds no adapter of '{min(left)}'")
