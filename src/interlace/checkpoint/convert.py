"""Convert one checkpoint folder to another, tensor by tensor, without a model in memory.

It changes names to the released ones, the dtype, or the shards. Shards are written one after the other under temporary
names, synced and renamed, so a run that was killed resumes with the shard it was at. At the end every tensor is read
back and compared with its source, bit for bit.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import CheckpointError, DataError
from interlace.base.files import PARTIAL, disk_errors, read_json, sync, user_path, write_file
from interlace.checkpoint.family import Family, Slot, Slots
from interlace.checkpoint.folder import INDEX, alongside, read_entries, resolve
from interlace.checkpoint.load import check_sizes, describe, match
from interlace.checkpoint.quantised import refuse_quantised
from interlace.checkpoint.rows import published_shape, row_count
from interlace.checkpoint.save import SHARD_BYTES, document, in_shards, index_of
from interlace.checkpoint.tensors import WEIGHTS, Entry, Planned, read_header, read_into, write_planned
from interlace.layers.projection import Projections
from interlace.model.config import ModelConfig
from interlace.model.device import check_dtype
from interlace.model.model import HybridLM
from interlace.runs.lock import beside, hold
from interlace.runs.progress import Progress, Watch, silent

STATE = "conversion.json"  # in the unfinished folder: what is being converted, so that only the same work goes on


@dataclass(frozen=True)
class Result:
    """The result of a conversion.

    Attributes:
        model_type: the family.
        tensors, shards, size_bytes: how many of each, and bytes of tensors.
        resumed: shards that an earlier, unfinished run had written.
    """

    model_type: str
    tensors: int
    shards: int
    size_bytes: int
    resumed: int


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    watch: Watch = silent,
) -> Result:
    """Write the checkpoint in `source` to `target`, under its family's released names.

    Args:
        source: a folder, a run folder or a hub id.
        target: a folder that does not exist yet.
        dtype: of the weights; None for each tensor's own. What stays in float32 in a model stays so here.
        shard_bytes: the most a file holds, unless one tensor is larger.
        watch: told "writing" or "checking", bytes done and bytes in all.

    Raises:
        CheckpointError: the source is damaged, or the target exists, or what was written differs from its source.
        ConfigError: no such dtype of weights.
        RunError: another process converts to the same target.
        Failure: the disk refuses.
    """
    check_dtype(dtype)
    target = user_path(target, CheckpointError)
    with hold(beside(target), target):
        return _convert(resolve(source), target, dtype, shard_bytes, watch)


def _convert(
    folder: Path,
    target: Path,
    dtype: torch.dtype | None,
    shard_bytes: int,
    watch: Watch,
) -> Result:
    if target.exists():
        raise CheckpointError(f"{target}: exists; name a new folder, or remove it first")
    if shard_bytes < 1:
        raise CheckpointError(f"shard size: must be at least one byte, got {shard_bytes}")
    family, config, raw = describe(folder)
    others = alongside(folder)
    entries = read_entries(folder)
    refuse_quantised(folder, family.loaded(entries))
    check_sizes(folder, config, entries)
    written = family.write_config(config)
    if written is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: uses settings that transformers' {family.model_type} does not have; load it "
            "and save it, which writes our own format"
        )
    planned = plan(family, config, entries, dtype)
    shards = in_shards(planned, shard_bytes)
    partial = target.with_name(target.name + PARTIAL)
    with disk_errors(target):
        resumed = _open(partial, folder, entries, dtype, shard_bytes)
        done, total = 0, sum(p.nbytes for p in planned)
        kept = 0
        for name, shard in shards.items():
            if resumed and (partial / name).is_file() and _holds(partial / name, shard):
                kept += 1
            else:
                write_planned(partial / (name + PARTIAL), shard)
                os.replace(partial / (name + PARTIAL), partial / name)
                sync(partial)
            done += sum(p.nbytes for p in shard)
            watch(Progress("writing", done, total))
        _check(partial, shards, watch, total)
        keys = {key: raw[key] for key in family.kept_keys if key in raw}
        embedding = next(p for p in planned if p.shape == (config.vocabulary, config.width))
        _finish(partial, target, others, document(family, {**keys, **written}, embedding.dtype), shards)
    return Result(family.model_type, len(planned), len(shards), total, kept)


def plan(family: Family, config: ModelConfig, entries: Mapping[str, Entry], dtype: torch.dtype | None) -> list[Planned]:
    """Return every tensor to write, in the order of the family's names, and how to read it from the source."""
    found = match(family, config, entries)
    model = HybridLM(config, device="meta")
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    wide = {
        f"{prefix}.{name}" for prefix, m in model.named_modules() if isinstance(m, Projections) for name in m.FLOAT32
    }
    places = _places(found, shapes)
    planned = []
    for name, slots in family.slots(config).items():
        sources = [piece for slot in slots for piece in _pieces(slot, places, shapes)]
        to = functools.reduce(torch.promote_types, [entries[piece[0]].dtype for piece in sources])
        if dtype is not None:
            to = torch.promote_types(dtype, torch.float32) if slots[0].name in wide else dtype
        planned.append(Planned(name, published_shape(slots, shapes), to, _reader(entries, sources)))
    for name, entry in entries.items():
        if family.keeps(name):
            to = entry.dtype if dtype is None or entry.code not in WEIGHTS else dtype
            size = entry.elements
            planned.append(Planned(name, entry.shape, to, _reader(entries, [(name, 0, size)])))
    return planned


Piece = tuple[str, int, int]  # a stored tensor, the first of its elements that is meant, and how many


def _places(found: Slots, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[tuple[int, int, str, int]]]:
    """Return by parameter: (first row, end row, the stored tensor, the element it begins at), in order of rows."""
    places: dict[str, list[tuple[int, int, str, int]]] = {}
    for name, slots in found.items():
        element = 0
        for slot in slots:
            rows = row_count(slot, shapes)
            first = 0 if slot.rows is None else slot.rows[0]
            places.setdefault(slot.name, []).append((first, first + rows, name, element))
            element += rows * _columns(slot, shapes)
    return {name: sorted(some) for name, some in places.items()}


def _columns(slot: Slot, shapes: Mapping[str, tuple[int, ...]]) -> int:
    shape = shapes[slot.name]
    return shape[-1] if len(shape) > 1 else 1


def _pieces(
    slot: Slot, places: Mapping[str, list[tuple[int, int, str, int]]], shapes: Mapping[str, tuple[int, ...]]
) -> list[Piece]:
    """Return where a slot's rows lie in the source."""
    first, columns = 0 if slot.rows is None else slot.rows[0], _columns(slot, shapes)
    end = first + row_count(slot, shapes)
    pieces = []
    for a, b, name, element in places[slot.name]:
        start, stop = max(a, first), min(b, end)
        if start < stop:
            pieces.append((name, element + (start - a) * columns, (stop - start) * columns))
    return pieces


def _reader(entries: Mapping[str, Entry], pieces: list[Piece]) -> Callable[[Tensor], None]:
    def read(target: Tensor) -> None:
        flat, done = target.view(-1), 0
        for name, first, count in pieces:
            read_into(entries[name], name, flat[done : done + count], first)
            done += count

    return read


def _open(
    partial: Path, folder: Path, entries: Mapping[str, Entry], dtype: torch.dtype | None, shard_bytes: int
) -> bool:
    """Make the unfinished folder, or resume it if it is the same work; return whether it is resumed."""
    files = sorted({e.path for e in entries.values()} | {folder / "config.json"})
    stamps = {str(p.resolve()): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}
    wanted = {"files": stamps, "dtype": str(dtype), "shard_bytes": shard_bytes}
    note = partial / STATE
    with suppress(DataError):  # a note that was cut short is other work
        if note.is_file() and read_json(note, "the note of an unfinished conversion") == wanted:
            return True
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_file(note, json.dumps(wanted))
    return False


def _holds(path: Path, shard: list[Planned]) -> bool:
    """Return whether a file has these tensors, judged by its header."""
    try:
        header = read_header(path)
    except CheckpointError:
        return False
    return {n: (e.shape, e.dtype) for n, e in header.items()} == {p.name: (p.shape, p.dtype) for p in shard}


def _check(partial: Path, shards: Mapping[str, list[Planned]], watch: Watch, total: int) -> None:
    """Read every tensor back, and its source again, and compare them bit for bit."""
    done = 0
    for name, shard in shards.items():
        written = read_header(partial / name)
        for planned in shard:
            want, found = planned.read(), torch.empty(planned.shape, dtype=planned.dtype)
            read_into(written[planned.name], planned.name, found)
            if not torch.equal(found.view(-1).view(torch.uint8), want.view(-1).view(torch.uint8)):
                (partial / name).unlink()
                raise CheckpointError(
                    f"{partial / name}: tensor '{planned.name}' is not what was written; the disk or its memory is "
                    "faulty; run the same command again"
                )
            done += planned.nbytes
        watch(Progress("checking", done, total))


def _finish(
    partial: Path,
    target: Path,
    others: Mapping[str, Path],
    content: dict[str, Any],
    shards: Mapping[str, list[Planned]],
) -> None:
    """Write config.json, the index and the files that lay beside the source's weights; then rename the folder."""
    for name, file in others.items():
        (partial / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, partial / name)
    write_file(partial / "config.json", json.dumps(content, indent=2) + "\n")
    if len(shards) > 1:
        write_file(partial / INDEX, json.dumps(index_of(shards), indent=2) + "\n")
    sync(partial)
    os.rename(partial, target)
    sync(target.parent)
    (target / STATE).unlink()
