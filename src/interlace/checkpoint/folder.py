"""Read a checkpoint folder that strangers made: what it holds, and what in it is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlace.base import links
from interlace.base.errors import CheckpointError, DataError, first_line
from interlace.base.files import read_json, user_path
from interlace.checkpoint.tensors import Entry, read_header, regular_size
from interlace.data.tokenizer import TOKENIZER_FILES
from interlace.runs.checkpoints import newest_whole, step_folders

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
OTHER_FORMATS = {
    ".gguf": "GGUF (llama.cpp)",
    ".npz": "NumPy's format (MLX)",
    ".h5": "TensorFlow's",
    ".msgpack": "Flax's",
}
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BESIDE = (GENERATION, *TOKENIZER_FILES)  # what lies beside config and weights: loaded, saved and converted alike
WEIGHTS = (SINGLE, INDEX, "model-*-of-*.safetensors", "model.safetensors-*-of-*.safetensors")
SHARD = re.compile(r"(?P<name>model(\.safetensors)?)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(source: str | Path, weights: bool = True) -> Path:
    """Return the checkpoint folder that a path or hub id means: itself, or the newest whole checkpoint of a run folder.

    A folder with a LoRA adapter is one too.

    Args:
        weights: whether they are fetched too, where `source` is a hub id.

    Raises:
        CheckpointError: there is nothing of the kind.
    """
    path = user_path(source, CheckpointError)
    if path.is_dir():
        if os.path.lexists(path / CONFIG) or is_adapter(path):
            return path
        if steps := step_folders(path):
            complete = [p for p in steps if any(next(p.glob(name), None) for name in (*WEIGHTS, ADAPTER_WEIGHTS))]
            if not complete:
                raise CheckpointError(
                    f"{path}: several workers wrote its checkpoints, to go on with; a model is written at the run's end"
                )
            if (newest := newest_whole(complete)) is None:
                raise CheckpointError(
                    f"{path}: none of its checkpoints is whole: {', '.join(p.name for p in steps)} is damaged; put it "
                    "back, or name the folder itself"
                )
            return newest
        models = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}"))
        models += sorted(p.name for p in path.iterdir() if step_folders(p))
        _refuse_others(path)
        if models:
            raise CheckpointError(
                f"{path}: holds several models; name one of them: " + ", ".join(f"{path / m}" for m in models)
            )
        if (path / "run.toml").is_file():
            raise CheckpointError(f"{path}: this run has no checkpoint yet; the next appears in {path / 'checkpoints'}")
        raise CheckpointError(
            f"{path}: holds no config.json and no checkpoints/step-N; name a checkpoint or run folder"
        )
    if path.exists():
        raise CheckpointError(f"{path}: is a file; name the folder that holds config.json")
    beside = path.parent != Path() and path.parent.is_dir()  # a misspelt local path is not looked for on the hub
    if beside or not HUB_ID.fullmatch(str(source)):
        raise CheckpointError(f"{path}: no such folder")
    return _fetch(str(source), weights)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds a LoRA adapter and no weights of a model; some have a model's config beside it."""
    return os.path.lexists(folder / ADAPTER) and not any(next(folder.glob(name), None) for name in WEIGHTS)


def _fetch(hub_id: str, weights: bool) -> Path:
    """Fetch a release into the hub's cache, with no more files than a load reads; return its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[CONFIG, INDEX, ADAPTER, *BESIDE]))
        if not weights:
            return folder
        if (folder / ADAPTER).is_file() and not (folder / INDEX).is_file():
            snapshot_download(hub_id, allow_patterns=[ADAPTER_WEIGHTS])
        cached = folder.parent.name == "snapshots"
        shards = shards_of(folder) if (folder / INDEX).is_file() else {}
        wanted = sorted(set(shards.values())) or [SINGLE]
        revision = folder.name if cached else None
        snapshot_download(hub_id, allow_patterns=wanted, revision=revision)
        if not shards and not (folder / SINGLE).exists():  # some put all in one shard, without an index
            snapshot_download(hub_id, allow_patterns=list(WEIGHTS), revision=revision)
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(f"{hub_id}: no such folder, and the hub does not give it: {first_line(error)}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json as a table.

    Code that it names (`auto_map`) is never fetched, imported or run; the name is ignored.

    Raises:
        CheckpointError: it is missing, damaged, or no table.
    """
    return read_table(folder, CONFIG, "the model's config")


def read_table(folder: Path, name: str, what: str) -> dict[str, Any]:
    """A JSON table of the folder; `what` names it in errors.

    Raises:
        CheckpointError: it is missing, damaged, no table, or a link that leaves the folder.
    """
    path = inside(folder, folder / name)
    try:
        if path.exists():
            regular_size(path)
        table = read_json(path, what)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: must be a table, got {type(table).__name__}")
    return table


def alongside(folder: Path) -> dict[str, Path]:
    """The files of BESIDE that a folder has, by their path below it.

    Raises:
        CheckpointError: one is a link that leaves the folder, or no regular file.
    """
    return links.alongside(folder, BESIDE, CheckpointError)


def shards_of(folder: Path) -> dict[str, str]:
    """Return the file of each tensor, as the index says.

    Raises:
        CheckpointError: it is no index, or names a file outside the folder.
    """
    index = folder / INDEX
    regular_size(inside(folder, index))
    try:
        weight_map = read_json(index, "the shard index")["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (DataError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: is not a shard index; download it again") from None
    if any(not isinstance(s, str) or Path(s).name != s or "\\" in s for s in shards):
        raise CheckpointError(f"{index}: names a shard outside its own folder; refused")
    found: dict[str, str] = weight_map
    return found


def read_entries(folder: Path) -> dict[str, Entry]:
    """Return every tensor of the folder by name: from one file, an index's shards, or a full set of numbered ones.

    Raises:
        CheckpointError: no safetensors, a pickle instead, a missing shard, or a damaged header.
    """
    index, single = folder / INDEX, folder / SINGLE
    if os.path.lexists(index):
        weight_map = shards_of(folder)
        shards = sorted(set(weight_map.values()))
        if single.exists() and SINGLE not in shards:
            raise CheckpointError(
                f"{folder}: holds {SINGLE} and, by {INDEX}, another {len(shards)} shards; one of the two is old: "
                f"remove {SINGLE}, or the index and its shards"
            )
        absent = [s for s in shards if not (folder / s).exists()]
        if absent:
            raise CheckpointError(
                f"{folder / absent[0]}: missing, though {INDEX} lists it ({len(absent)} such); download it again"
            )
        entries = _read_shards(folder, shards)
        if missing := sorted(set(weight_map) - set(entries)):
            raise CheckpointError(f"{index}: tensor '{missing[0]}' is in no shard ({len(missing)} such)")
        return entries
    if single.exists() or single.is_symlink():
        return read_header(inside(folder, single))
    if shards := _numbered(folder):
        return _read_shards(folder, shards)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]}: a pickle can run code when it is opened; refused, convert it to safetensors first"
        )
    _refuse_others(folder)
    raise CheckpointError(f"{folder}: holds no model.safetensors")


def _read_shards(folder: Path, shards: Sequence[str]) -> dict[str, Entry]:
    """Return every tensor of these files by name."""
    entries: dict[str, Entry] = {}
    for shard in shards:
        for name, entry in read_header(inside(folder, folder / shard)).items():
            if name in entries:
                raise CheckpointError(
                    f"{folder}: tensor '{name}' is in {entries[name].path.name} and again in {shard}; "
                    "one of the files belongs to another checkpoint"
                )
            entries[name] = entry
    return entries


def _numbered(folder: Path) -> list[str]:
    """Return shards I of N that stand without an index; none if there are none.

    Raises:
        CheckpointError: one of the N is missing, or there are two sets.
    """
    found = {path.name: match for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    if not found:
        return []
    sets = {(match["name"], match["count"]) for match in found.values()}
    if len(sets) > 1:
        raise CheckpointError(f"{folder}: holds two sets of shards, and no {INDEX} that says which; keep one of them")
    name, count = sets.pop()
    absent = set(range(1, int(count) + 1)) - {int(match["number"]) for match in found.values()}
    if absent:
        wanted = f"{name}-{min(absent):05}-of-{count}.safetensors"
        raise CheckpointError(f"{folder / wanted}: missing, and no {INDEX} lists the shards; download it again")
    return sorted(found)


def _refuse_others(folder: Path) -> None:
    """Refuse a folder that holds an adapter or another format instead of a model's safetensors, and name it."""
    if (folder / ADAPTER).is_file():
        base = read_table(folder, ADAPTER, "an adapter's config").get("base_model_name_or_path", "a base model")
        raise CheckpointError(
            f"{folder}: is a LoRA adapter of {base!r}, not a model; merge it into that model, and load the result"
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in OTHER_FORMATS:
            form = OTHER_FORMATS[path.suffix]
            raise CheckpointError(f"{path}: is in {form} format, which is not opened; take the release in safetensors")


def inside(folder: Path, path: Path) -> Path:
    """Return a file of the folder, as `interlace.base.links.inside`.

    Raises:
        CheckpointError: the file's real place is outside, or it is a link to itself.
    """
    return links.inside(folder, path, CheckpointError)
