"""A checkpoint folder as strangers hand it to us: what it holds, and what in it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from interlace.base.errors import CheckpointError, DataError
from interlace.base.files import read_json
from interlace.checkpoint.tensors import Entry, read_header

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
IMPLEMENTATIONS = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "grouped_mm",
    "batched_mm",
)
LARGEST = 1 << 34  # of any number in a config
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(source: str | Path) -> Path:
    """The checkpoint folder that a path or hub id means: itself, or the newest checkpoint of a run folder.

    Raises:
        CheckpointError: there is nothing of the kind.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        steps = [p for p in path.glob("checkpoints/step-*") if p.name.removeprefix("step-").isdigit()]
        if steps:
            return max(steps, key=lambda p: int(p.name.removeprefix("step-")))
        raise CheckpointError(
            f"{path}: holds no config.json and no checkpoints/step-N; name a checkpoint or run folder"
        )
    if path.exists():
        raise CheckpointError(f"{path}: is a file; name the folder that holds config.json")
    beside = path.parent != Path() and path.parent.is_dir()  # a misspelt local path is not looked for on the hub
    if beside or not HUB_ID.fullmatch(str(source)):
        raise CheckpointError(f"{path}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{source}: no such folder, and the hub does not give it: {reason}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, refused if it asks for code to be run.

    Raises:
        CheckpointError: it is missing, damaged, or names code.
    """
    try:
        config = read_json(inside(folder, folder / "config.json"), "the model's config")
    except DataError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'}: must be a table, got {type(config).__name__}")
    _refuse_code(folder / "config.json", config)
    return config


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    """Stop at a config that names code, a kernel of its own, or sizes that no machine holds; nested tables too."""
    for key, value in config.items():
        if key in ("auto_map", "trust_remote_code", "custom_pipelines") and value:
            raise CheckpointError(f"{path}: '{key}' asks for code to be run; refused, nothing was run")
        if key in ("attn_implementation", "_attn_implementation", "experts_implementation") and value:
            _refuse_kernels(path, key, value)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST and "position" not in key:
            raise CheckpointError(f"{path}: {key} = {value:,} is absurd; the config is damaged or hostile")
        if isinstance(value, dict):
            _refuse_code(path, value)


def _refuse_kernels(path: Path, key: str, value: object) -> None:
    """Stop at an implementation that is not one of the usual words."""
    if value not in IMPLEMENTATIONS:
        raise CheckpointError(
            f"{path}: {key} = {value!r} names an implementation that would have to be fetched and run; refused, "
            f"nothing was run; known: {', '.join(IMPLEMENTATIONS)}"
        )


def read_entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the folder by name, from one file or from the shards of an index.

    Raises:
        CheckpointError: no safetensors, a pickle instead, a missing shard, or a damaged header.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        try:
            weight_map = read_json(index, "the shard index")["weight_map"]
            shards = sorted(set(weight_map.values()))
        except (DataError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{index}: is not a shard index; download it again") from None
        if any(not isinstance(s, str) or Path(s).name != s or "\\" in s for s in shards):
            raise CheckpointError(f"{index}: names a shard outside its own folder; refused")
        absent = [s for s in shards if not (folder / s).exists()]
        if absent:
            raise CheckpointError(
                f"{folder / absent[0]}: missing, though {INDEX} lists it ({len(absent)} such); download it again"
            )
        entries: dict[str, Entry] = {}
        for shard in shards:
            for name, entry in read_header(inside(folder, folder / shard)).items():
                if name in entries:
                    raise CheckpointError(
                        f"{folder}: tensor '{name}' is in {entries[name].path.name} and again in {shard}; "
                        "one of the files belongs to another checkpoint"
                    )
                entries[name] = entry
        if missing := sorted(set(weight_map) - set(entries)):
            raise CheckpointError(f"{index}: tensor '{missing[0]}' is in no shard ({len(missing)} such)")
        return entries
    if single.is_file():
        return read_header(inside(folder, single))
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]}: a pickle can run code when it is opened; refused, convert it to safetensors first"
        )
    raise CheckpointError(f"{folder}: holds no model.safetensors")


def inside(folder: Path, path: Path) -> Path:
    """A file of the folder, refused if it is a link to somewhere else.

    The hub's own cache links from a snapshot to the blobs beside it, which is allowed.

    Raises:
        CheckpointError: the file's real place is outside.
    """
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"  # models--OWNER--NAME/snapshots/REVISION beside models--OWNER--NAME/blobs
    cached = home.parent.name == "snapshots" and real.is_relative_to(blobs)
    if not real.is_relative_to(home) and not cached:
        raise CheckpointError(
            f"{path}: is a link that leaves its folder, to {real}; refused, copy the file here instead"
        )
    return path
