"""The safetensors format, read in blocks straight into place and written in a fixed order.

Own code where a library exists, because loading must not hold a file's tensors beside the model's, headers come from
strangers, and two saves of one model must be the same bytes. The `safetensors` library checks it in the tests.
Format: 8 bytes little-endian header length, JSON header, tensors (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from interlace.base.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
BLOCK = 16 << 20  # bytes read at a time


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes [start, stop) of `path`."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Entry]:
    """What a file holds, believed only as far as the file's own length bears it out.

    Raises:
        CheckpointError: the file is truncated, or its header is not what the format says.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LONGEST_HEADER):
                raise CheckpointError(
                    f"{path}: the header claims {length:,} bytes, but the file has {size:,}; it is damaged or no "
                    "safetensors file"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON ({error}); download the file again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a table; download the file again")
    return {k: _entry(path, k, v, 8 + length, size) for k, v in header.items() if k != "__metadata__"}


def _entry(path: Path, name: str, fields: object, base: int, size: int) -> Entry:
    try:
        dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]  # type: ignore[index]
        good = all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        good, dtype = False, None
    if not good:
        raise CheckpointError(f"{path}: the entry of tensor '{name}' is malformed; download the file again")
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor '{name}' has dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
        raise CheckpointError(f"{path}: tensor '{name}' claims shape {shape} in {stop - start:,} bytes; they disagree")
    if base + stop > size:
        raise CheckpointError(
            f"{path}: truncated: tensor '{name}' ends at byte {base + stop:,}, the file at {size:,}; download it again"
        )
    return Entry(path, DTYPES[dtype], tuple(shape), base + start, base + stop)


def _opened(path: Path) -> FileIO:
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
            if entry.dtype.is_floating_point and not bool(torch.isfinite(block).all()):
                raise CheckpointError(f"{entry.path}: tensor '{name}' holds NaN or infinity; the weights are damaged")
            part = flat[done : done + block.numel()].copy_(block)
            name_of = str(target.dtype).removeprefix("torch.")
            narrows = target.dtype.is_floating_point and target.dtype.itemsize < entry.dtype.itemsize
            if narrows and not bool(torch.isfinite(part).all()):
                raise CheckpointError(f"{entry.path}: tensor '{name}' holds values too large for {name_of}")
            done += block.numel()


def same_values(a: Entry, b: Entry) -> bool:
    """Whether two stored tensors hold the same bytes in the same shape, 16 MiB of each in memory at a time."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    with open(a.path, "rb") as one, open(b.path, "rb") as two:
        one.seek(a.start), two.seek(b.start)
        left = a.stop - a.start
        while left:
            count = min(BLOCK, left)
            if one.read(count) != two.read(count):
                return False
            left -= count
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
        """Bytes that it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor itself."""
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
    """A tensor in memory, to be written under this shape."""
    return Planned(name, shape, tensor.dtype, lambda target: target.copy_(tensor.detach().reshape(shape)))  # type: ignore[arg-type]
