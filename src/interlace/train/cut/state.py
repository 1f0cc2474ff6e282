"""Training state by `torch.distributed.checkpoint`: every worker writes what it holds, any number of them reads it.

The files are safetensors, with the place of each box in its tensor: nothing in them is executed when they are read. A
fused parameter is stored part by part, so that each worker holds one box of each stored tensor.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from interlace.base.errors import CheckpointError, Failure, first_line
from interlace.layers.low_rank import kept_parameters
from interlace.model.model import HybridLM
from interlace.train.cut.pieces import Layout
from interlace.train.cut.tensor import cuts_of
from interlace.train.saved import MOMENTS, Saved

At = Callable[[Layout], tuple[int, int]]
FILE_BYTES = 256 << 20


class Box(torch.Tensor):
    """A box of a stored tensor, as torch.distributed.checkpoint asks for it."""

    start: tuple[int, ...]
    whole: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor, start: tuple[int, ...], whole: tuple[int, ...]) -> Box:
        """Return the same memory as a box that begins at `start` of a tensor of shape `whole`."""
        box = tensor.detach().as_subclass(Box)
        box.start, box.whole = start, whole
        return box

    def size(self, dim: int | None = None) -> Any:
        """Return the shape of the whole."""
        return torch.Size(self.whole) if dim is None else self.whole[dim]

    def plain(self) -> Tensor:
        """Return the box as an ordinary tensor, the same memory."""
        return self.as_subclass(torch.Tensor)

    def copied(self) -> Box:
        """Return a copy on the CPU."""
        return Box.of(self.plain().to("cpu", copy=True), self.start, self.whole)

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.start), self.plain().shape)

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        """Return what is written of the tensor here."""
        properties = TensorProperties.create_from_tensor(self.plain())
        data = TensorWriteData(chunk=self._chunk(), properties=properties, size=torch.Size(self.whole))
        return [WriteItem(MetadataIndex(fqn, torch.Size(self.start)), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """Return which box of the tensor is wanted here."""
        return [self._chunk()]

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        """Return the memory of the box."""
        return self.plain()


def boxes(key: str, layout: Layout, local: Tensor, shard: int, tensor: int) -> Iterator[tuple[str, Box]]:
    """Yield (stored name, box) of what one worker holds of a parameter, or of a tensor laid out like it."""
    sizes = layout.parts
    for piece in layout.pieces(shard, tensor):
        if len(sizes) == 1:
            yield key, Box.of(piece.of(local), piece.start, layout.shape)
            continue
        assert layout.cut is not None
        axis, part, begin = layout.cut.axis, 0, 0
        while piece.start[axis] >= begin + sizes[part]:
            begin, part = begin + sizes[part], part + 1
        start, whole = list(piece.start), list(layout.shape)
        start[axis], whole[axis] = start[axis] - begin, sizes[part]
        yield f"{key}/{part}", Box.of(piece.of(local), tuple(start), tuple(whole))


def files_of(tensors: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> dict[str, int]:
    """Return in which file, counted from 1, a worker writes each stored tensor: FILE_BYTES or a tensor at a time.

    A file is made in memory, and nothing else runs in Python meanwhile.
    """
    found: dict[str, int] = {}
    file, held_bytes = 1, 0
    for key, tensor in tensors.items():
        if held_bytes and held_bytes + tensor.nbytes > FILE_BYTES:
            file, held_bytes = file + 1, 0
        held_bytes += tensor.nbytes
        count = len(layouts[key.partition("/")[2]].parts)
        found |= dict.fromkeys([key] if count == 1 else [f"{key}/{part}" for part in range(count)], file)
    return found


def save(state: Mapping[str, Box], folder: Path, group: Any = None, files: dict[str, int] | None = None) -> None:
    """Write the boxes of all workers of a group into a folder; every worker calls this.

    files: of all stored tensors, on the first worker, the file of each; one for all if None.
    """
    with _quiet():
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, fqn_to_index_mapping=files)
        try:
            dcp.save(dict(state), storage_writer=writer, process_group=group)
        except dcp.CheckpointException as error:
            reasons = sorted({f"worker {rank}: {first_line(one[0])}" for rank, one in error.failures.items()})
            raise Failure(f"{folder}: cannot be written: {'; '.join(reasons)}; earlier checkpoints stay") from error


def stored_names(folder: Path) -> set[str]:
    """Return the names of the tensors in a folder."""
    with _quiet():
        return set(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def load(state: Mapping[str, Box], folder: Path, group: Any = None) -> None:
    """Fill boxes from a folder that any number of workers wrote; every worker calls this.

    Raises:
        CheckpointError: a tensor is missing, or has another shape.
    """
    try:
        with _quiet():
            dcp.load(dict(state), storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group)
    except dcp.CheckpointException as error:  # which is no Exception
        reasons = sorted({first_line(one[0]) for one in error.failures.values()})
        raise CheckpointError(f"{folder}: cannot be resumed from: {'; '.join(reasons)}") from error
    except Exception as error:
        raise CheckpointError(f"{folder}: cannot be resumed from: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says of its own plans."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def tensors_of(saved: Saved, local: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return what lies here of all tensors of a checkpoint, as "key/parameter"."""
    found = {f"model/{name}": local(p.detach()) for name, p in kept_parameters(saved.model).items()}
    found |= {name: local(x) for name, x in saved.moments.items()}
    return found | {f"average/{name}": x for name, x in (saved.average or {}).items()}


def all_boxes(tensors: Mapping[str, Tensor], layouts: Mapping[str, Layout], at: At) -> dict[str, Box]:
    """Return the boxes of all tensors. at: the place, (cut, tensor), of this worker in a layout."""
    found: dict[str, Box] = {}
    for key, tensor in tensors.items():
        layout = layouts[key.partition("/")[2]]
        found |= boxes(key, layout, tensor, *at(layout))
    return found


def empty_moment(kind: str, parameter: Tensor, local: Callable[[Tensor], Tensor]) -> Tensor:
    """Return zeros for a moment: AdamW's are like parameters, Muon's are of what lies here."""
    return torch.zeros_like(local(parameter) if kind == "momentum" else parameter).detach()


def read(
    saved: Saved,
    folder: Path,
    layouts: Mapping[str, Layout],
    at: At = lambda _: (0, 0),
    local: Callable[[Tensor], Tensor] = lambda x: x,
    group: Any = None,
) -> dict[str, Tensor]:
    """Fill a model, and the average of its weights, from a folder of any number of workers; return the moments.

    Raises:
        CheckpointError: a tensor is missing, or has another shape.
    """
    names = stored_names(folder)
    stored = {key for name in names for key in (name, name.rpartition("/")[0])}  # of parts too
    moments = {
        f"{kind}/{name}": empty_moment(kind, p, local)
        for name, p in saved.model.named_parameters()
        for kind in MOMENTS
        if f"{kind}/{name}" in stored
    }
    kept = any(name.startswith("average/") for name in names)
    into = Saved(saved.model, moments, saved.average if kept else None, {})
    load(all_boxes(tensors_of(into, local), layouts, at), folder, group)
    if saved.average is not None and not kept:  # one that was not kept before begins with the weights
        for name, p in kept_parameters(saved.model).items():
            saved.average[name].copy_(local(p.detach()))
    return moments


def layouts_alone(model: HybridLM) -> dict[str, Layout]:
    """Return the layouts of one worker, which holds everything."""
    cuts = cuts_of(model, 1)
    return {name: Layout(tuple(p.shape), cuts.get(name), 1, 1) for name, p in model.named_parameters()}
