"""The safetensors format: read in blocks straight into place, and written in a fixed order.

Why not the library: loading must not hold a file's tensors beside the model's, headers come from strangers, and two
saves of one model must be the same bytes. The tests check this code with the `safetensors` library.

Format: 8 bytes little-endian header length, JSON header, tensors (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlace.base import links
from interlace.base.errors import CheckpointError

WEIGHTS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = WEIGHTS | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # of one element, where torch has no dtype
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
BLOCK = 16 << 20  # bytes read at a time


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes [start, stop) of `path`.

    Attributes:
        code: the format's name of the dtype.
    """

    path: Path
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        """torch's name of the dtype; uint8, the bytes as they are, if torch has no such dtype."""
        return DTYPES.get(self.code, torch.uint8)

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Entry]:
    """Return what a file holds; the header is believed only as far as the file's length allows.

    As strict as the `safetensors` library: tensors lie end to end, in bytes that the file has, and each has one name.

    Raises:
        CheckpointError: the file is truncated, or its header is not what the format says.
    """
    size = regular_size(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise CheckpointError(
                    f"{path}: the header claims {length:,} bytes, but the file has {size:,}; it is damaged or no "
                    "safetensors file"
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    header = _table(path, raw)
    _check_metadata(path, header.pop("__metadata__", None))
    entries = {k: _entry(path, k, v, 8 + length, size) for k, v in header.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries


def regular_size(path: Path) -> int:
    """Return the bytes of a file that can be read from beginning to end, which a pipe or a device cannot.

    Raises:
        CheckpointError: it is missing, or no regular file.
    """
    return links.regular_size(path, CheckpointError)


def _table(path: Path, raw: bytes) -> dict[str, Any]:
    """Return the header's JSON, in which no name may stand twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{path}: the header names '{twice}' twice; download the file again")
        return table

    def no_constant(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        table: dict[str, Any] = json.loads(raw.decode(), object_pairs_hook=once, parse_constant=no_constant)
        json.dumps(table, ensure_ascii=False).encode()  # half a surrogate is no text
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON ({error}); download the file again") from None
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: the header is not a table; download the file again")
    return table


def _check_metadata(path: Path, metadata: object) -> None:
    good = metadata is None or (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()))
    if not good:
        raise CheckpointError(f"{path}: __metadata__ must be a table of texts; download the file again")


def _entry(path: Path, name: str, fields: object, base: int, size: int) -> Entry:
    try:
        code, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]  # type: ignore[index]
        good = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 64 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        good, code = False, None
    if not good:
        raise CheckpointError(f"{path}: the entry of tensor '{name}' is malformed; download the file again")
    if not isinstance(code, str) or code not in {**DTYPES, **BITS}:
        known = ", ".join((*DTYPES, *BITS))
        raise CheckpointError(f"{path}: tensor '{name}' has dtype {code!r}, which the format lacks; known: {known}")
    bits = BITS[code] if code in BITS else 8 * DTYPES[code].itemsize
    if any(size >= 1 << 64 for size in itertools.accumulate(shape, operator.mul, initial=bits)):
        raise CheckpointError(f"{path}: tensor '{name}' claims shape {shape}, more than any file holds; it is damaged")
    if math.prod(shape) * bits != 8 * (stop - start):
        raise CheckpointError(f"{path}: tensor '{name}' claims shape {shape} in {stop - start:,} bytes; they disagree")
    if base + stop > size:
        raise CheckpointError(
            f"{path}: truncated: tensor '{name}' ends at byte {base + stop:,}, the file at {size:,}; download it again"
        )
    return Entry(path, code, tuple(shape), base + start, base + stop)


def _check_layout(path: Path, entries: dict[str, Entry], base: int, size: int) -> None:
    """Check that tensors follow one another without a hole or an overlap, to the file's last byte."""
    place = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != place:
            fault = "overlaps the one before it" if entry.start < place else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor '{name}' begins at byte {entry.start:,} and {fault}, which ends at {place:,}; "
                "download the file again"
            )
        place = entry.stop
    if place != size:
        raise CheckpointError(
            f"{path}: has {size - place:,} bytes after its last tensor; it is damaged, download it again"
        )


def _opened(path: Path) -> FileIO:
    regular_size(path)  # opening a pipe would wait for its writer
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_into(entry: Entry, name: str, target: Tensor, skip: int = 0) -> None:
    """Fill a contiguous tensor from the stored elements after `skip`, converting dtype on the way, 16 MiB at a time.

    Raises:
        CheckpointError: the file ends early, or holds a value that is not finite.
    """
    flat = target.detach().view(-1)
    scratch = torch.empty(min(BLOCK, entry.stop - entry.start), dtype=torch.uint8)
    window = scratch.numpy().data
    done = 0
    with _opened(entry.path) as file:
        file.seek(entry.start + skip * entry.dtype.itemsize)
        while done < flat.numel():
            wanted = min(len(window), (flat.numel() - done) * entry.dtype.itemsize)
            got = 0
            while got < wanted:
                count = file.readinto(window[got:wanted])
                if not count:
                    raise CheckpointError(f"{entry.path}: truncated in tensor '{name}'; download it again")
                got += count
            block = scratch[:wanted].view(entry.dtype)
            if entry.code in WEIGHTS and not bool(torch.isfinite(block).all()):
                raise CheckpointError(f"{entry.path}: tensor '{name}' holds NaN or infinity; the weights are damaged")
            part = flat[done : done + block.numel()].copy_(block)
            name_of = str(target.dtype).removeprefix("torch.")
            narrows = target.dtype.is_floating_point and target.dtype.itemsize < entry.dtype.itemsize
            if narrows and not bool(torch.isfinite(part).all()):
                raise CheckpointError(f"{entry.path}: tensor '{name}' holds values too large for {name_of}")
            done += block.numel()


def same_values(a: tuple[str, Entry], b: tuple[str, Entry]) -> bool:
    """Return whether two stored tensors, given with their names, hold the same numbers in the same shape.

    One in another dtype holds the same if it is the other one rounded. 4 million of each are in memory at a time.
    """
    one, two = a[1], b[1]
    if one.shape != two.shape:
        return False
    wide = torch.promote_types(one.dtype, two.dtype)
    narrow = min(one.dtype, two.dtype, key=lambda dtype: dtype.itemsize)
    compared = narrow if wide in (one.dtype, two.dtype) else wide
    for first in range(0, one.elements, BLOCK // 4):
        parts = []
        for name, entry in (a, b):
            part = torch.empty(min(BLOCK // 4, one.elements - first), dtype=entry.dtype)
            read_into(entry, name, part, first)
            parts.append(part.to(compared))
        if not torch.equal(*parts):
            return False
    return True


@dataclass(frozen=True)
class Planned:
    """A tensor to be written.

    Attributes:
        name, shape, dtype: as they will be stored.
        fill: writes its elements into a contiguous tensor of that dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Callable[[Tensor], None]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Return the tensor itself."""
        target = torch.empty(self.shape, dtype=self.dtype)
        self.fill(target)
        return target


def write_planned(path: Path, planned: Sequence[Planned]) -> None:
    """Write tensors, of which one at a time is in memory; the same ones always give the same bytes."""
    codes = {v: k for k, v in DTYPES.items()}
    ordered = sorted(planned, key=lambda p: (-p.dtype.itemsize, p.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for p in ordered:
        stop = position + p.nbytes
        header[p.name] = {"dtype": codes[p.dtype], "shape": list(p.shape), "data_offsets": [position, stop]}
        position = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for p in ordered:
            for block in p.read().view(-1).view(torch.uint8).split(BLOCK):
                file.write(block.numpy().data)
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, tensors: Iterable[tuple[str, tuple[int, ...], Tensor]]) -> None:
    """Write (name, shape, tensor) triples; the same triples always give the same bytes."""
    write_planned(path, [planned(*triple) for triple in tensors])


def planned(name: str, shape: tuple[int, ...], tensor: Tensor) -> Planned:
    """Return a tensor in memory as one to be written under this shape."""
    return Planned(name, shape, tensor.dtype, lambda target: target.copy_(tensor.detach().reshape(shape)))  # type: ignore[arg-type]
