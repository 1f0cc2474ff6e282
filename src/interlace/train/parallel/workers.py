"""One of several workers that train a model together: what it reads, holds and sums."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from interlace.base.errors import ConfigError, InterlaceError, RunError
from interlace.base.files import PARTIAL, new_folder
from interlace.base.segments import Segments
from interlace.checkpoint.adapter import write_adapter
from interlace.checkpoint.save import family_of_model, write_description, write_model
from interlace.data.batches import IGNORE, Batch, parts
from interlace.layers.low_rank import adapters, kept_parameters
from interlace.model.model import HybridLM
from interlace.ops.core.across import Across
from interlace.runs.background import Background
from interlace.runs.machine import free_bytes
from interlace.runs.training import TrainingRun
from interlace.train.cut.pieces import Layout, Piece
from interlace.train.cut.state import all_boxes, empty_moment, files_of, read, save, tensors_of
from interlace.train.cut.tensor import cuts_of, divide
from interlace.train.muon import Momentum, Orthogonalise
from interlace.train.optimizer import Route, routes
from interlace.train.parallel.plan import NAMES, laid_out, trades_heads
from interlace.train.recipe import Recipe
from interlace.train.saved import AVERAGE, FACTS, STATE, Saved, read_moments, read_weights, with_weights
from interlace.train.workers import Alone

T = TypeVar("T")
E = TypeVar("E", bound=InterlaceError)
PATIENCE = timedelta(days=7)  # of a collective on the CPU: who has died is known by its signs of life
Wholes = dict[str, HybridLM | dict[str, Tensor]]  # by folder: models, or A and B of adapters by parameter
SEEN_SECONDS = 40.0  # in which a network disk shows what another machine wrote


@dataclass(frozen=True)
class Grid:
    """How many workers there are in each direction.

    Attributes:
        replicate: groups that hold the same weights and read different rows.
        shard: workers that cut the weights among them and read different rows.
        context: workers that cut rows into stretches; weights are cut over them too.
        tensor: workers that cut heads among them and read the same tokens.
        by_heads: whether recurrences trade heads over the context, or hand on states.
    """

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1
    by_heads: bool = False

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """In the order of NAMES."""
        return self.replicate, self.shard, self.context, self.tensor


class Workers(Alone):
    """A worker among others; a process group is set up already.

    Attributes:
        grid: how many there are in each direction.
        place: where this one stands, by direction.
        layouts: how each parameter is cut, by name, once `prepare` was called.
    """

    def __init__(self, grid: Grid, device: str = "cpu"):
        """Build the groups; every worker calls this."""
        self._device = torch.device(device)
        self.rank = dist.get_rank()
        self.first, self.count = self.rank == 0, dist.get_world_size()
        self._background = dist.new_group(backend="gloo", timeout=PATIENCE)  # of what is written while training goes on
        self._lay_out(grid)
        self.layouts: dict[str, Layout] = {}
        self._routes: dict[str, dict[str, Route]] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._history = 1  # tokens that the convolutions look back
        self._partial: list[tuple[str, Piece]] = []  # what several workers of a tensor group hold

    def _lay_out(self, grid: Grid) -> None:
        """Build the groups of a grid; every worker calls this."""
        self.grid = grid
        mesh = self._mesh(grid.sizes, NAMES)
        self.place = {name: mesh.get_local_rank(name) for name in NAMES}
        replicate, shard, context, tensor = grid.sizes
        cut = shard * context  # over which weights are cut
        self._weights = self._mesh((replicate, cut, tensor), ("replicate", "cut", "tensor"))
        self._data = self._mesh((replicate * cut, tensor), ("data", "tensor")).get_group("data")
        self.reader = dist.get_rank(self._data), dist.get_world_size(self._data)
        self._model = self._mesh((replicate, cut * tensor), ("replicate", "model")).get_group("model")
        self._tensor = mesh.get_group("tensor")
        self._context = mesh.get_group("context").group_name

    def _mesh(self, sizes: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
        return init_device_mesh(self._device.type, sizes, mesh_dim_names=names)

    # What is read

    def shares(self, batch: Batch, accumulate: int) -> list[Batch]:
        """Return what this worker reads of a step's batch, in so many parts: rows, and of each its own stretch."""
        share = self.place["replicate"] * self.grid.shard + self.place["shard"]
        shares = self.grid.replicate * self.grid.shard
        found = parts(batch, shares * accumulate) if shares * accumulate > 1 else [replace(batch, whole=batch.counted)]
        own = found[share::shares]  # part by part, all workers together read what one alone reads
        return [self._stretch(part) for part in own] if self.grid.context > 1 else own

    def _stretch(self, batch: Batch) -> Batch:
        places, place = self.grid.context, self.place["context"]
        batch = filled(batch, places, self._history)
        across = Across.of(batch.segments, self._context, place, places, self.grid.by_heads)
        size = batch.segments.total // places
        own = slice(place * size, (place + 1) * size)
        weights = None if batch.weights is None else batch.weights[own]
        return replace(
            batch,
            tokens=batch.tokens[own],
            targets=batch.targets[own],
            weights=weights,
            segments=across.segments(size),
            share=batch.share / places,
        )

    # What is held

    def begin(self, recipe: Recipe) -> None:
        """Lay the workers out as a stage says, and choose how its recurrent layers go on over the context."""
        sizes = laid_out(recipe.parallel, self.count)
        grid = Grid(**sizes, by_heads=trades_heads(recipe, sizes, self._device.type))
        if grid.sizes != self.grid.sizes:
            self._lay_out(grid)
        self.grid = grid

    def prepare(self, model: HybridLM) -> None:
        """Cut a model's weights, which every worker has drawn or read alike, so that this worker holds its part."""
        grid, tensor = self.grid, self.grid.tensor
        if tensor > 1 and next(adapters(model), None) is not None:
            raise ConfigError("train.lora: adapters are not cut over heads; set parallel.tensor = 1")
        self.layouts, self._names, self._partial = {}, {}, []  # of a stage before
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        taps = [getattr(model.config.kind(i), "convolution", 1) for i in range(model.config.depth)]
        self._history = max(1, *(n - 1 for n in taps))
        self._routes = {optimizer: routes(model, optimizer) for optimizer in ("adamw", "muon")}
        cuts = cuts_of(model, tensor)
        if tensor > 1:
            divide(model, self._tensor.group_name, self.place["tensor"], tensor)
        frozen = {p for name, p in model.named_parameters() if name.endswith(".correction")}  # moved by their counts
        shards = grid.shard * grid.context
        if grid.replicate * shards > 1:
            self._shard(model, frozen)
        for p in model.parameters():  # those that no group has moved there
            if not isinstance(p, DTensor):
                p.data = p.data.to(self._device)
        for name, p in model.named_parameters():
            held = shards if isinstance(p, DTensor) else 1
            self.layouts[name] = Layout(shapes[name], cuts.get(name), tensor, held)
            assert self.layouts[name].local_shape(*self._at(self.layouts[name])) == tuple(self.local(p).shape), name
            self._names[p] = name
            if name in cuts and p.requires_grad:
                self._partial += [(name, piece) for piece in self.pieces(name) if piece.copies > 1]

    def _shard(self, model: HybridLM, ignored: set[nn.Parameter]) -> None:
        mesh = self._weights["cut"] if self.grid.replicate == 1 else self._weights["replicate", "cut"]
        for block in model.blocks:
            fully_shard(block, mesh=mesh, ignored_params=ignored)
        fully_shard(model, mesh=mesh, ignored_params=ignored, reshard_after_forward=False)
        register_fsdp_forward_method(model, "read")
        for module in model.modules():
            if isinstance(module, FSDPModule):  # losses are divided by the targets of all workers: gradients are summed
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def _at(self, layout: Layout) -> tuple[int, int]:
        """Return the place, (cut, tensor), of this worker in a layout."""
        return self._held(layout, dist.get_rank(self._model))

    def pieces(self, name: str) -> list[Piece]:
        """Return the boxes of a parameter that this worker holds."""
        return self.layouts[name].pieces(*self._at(self.layouts[name]))

    def local(self, x: Tensor) -> Tensor:
        """Return what lies here of a parameter, a gradient or a moment; the same memory."""
        return x._local_tensor if isinstance(x, DTensor) else x

    def routes(self, model: nn.Module, optimizer: str) -> dict[str, Route]:
        """Return which optimizer moves which parameter, as for the whole model."""
        return self._routes[optimizer]

    def before_part(self, model: nn.Module, last: bool) -> None:
        """Keep what the backward of a part needs not send; the last part of a batch sends the sum of all."""
        if isinstance(model, FSDPModule):
            model.set_requires_all_reduce(last)
            model.set_is_last_backward(last)
            model.set_reshard_after_backward(last, recurse=False)  # embedding and head, which the next part reads first

    def reshard(self, model: nn.Module) -> None:
        """Give up weights of others that a pass without gradients has gathered."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    # What is summed

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the workers that read different tokens."""
        x = x.detach().clone()
        dist.all_reduce(x, group=self._data)
        return x

    def over_model(self, x: Tensor) -> Tensor:
        """Return the sum over the workers that hold one model together; what several hold counts as often."""
        x = x.detach().clone()
        dist.all_reduce(x, group=self._model)
        return x

    @torch.no_grad()
    def finish(self, model: HybridLM) -> None:
        """Sum the gradients, over the workers that divide a layer, of what several of them hold."""
        if not self._partial:
            return
        gradients = {name: p.grad for name, p in model.named_parameters()}
        tensor, place, boxes, slots = self.grid.tensor, self.place["tensor"], [], []
        for name, piece in self._partial:
            gradient = gradients[name]
            if gradient is None:
                continue
            box = piece.of(self.local(gradient))
            pieces = tensor // piece.copies
            slot = box.new_zeros(pieces, *box.shape)
            slot[place * pieces // tensor] = box
            boxes.append(box)
            slots.append(slot)
        flat = torch.cat([slot.flatten() for slot in slots])
        dist.all_reduce(flat, group=self._tensor)
        for box, part in zip(boxes, flat.split([slot.numel() for slot in slots]), strict=True):
            own = part.view(-1, *box.shape)
            box.copy_(own[place * own.shape[0] // tensor])

    @torch.no_grad()
    def norm(self, model: HybridLM) -> Tensor:
        """Return the norm of the whole gradient, of which each element counts once."""
        total = torch.zeros((), device=model.device)
        for name, p in model.named_parameters():
            if p.grad is None:
                continue
            layout, gradient = self.layouts[name], self.local(p.grad)
            everywhere = self.grid.shard * self.grid.context // layout.shards
            for piece in self.pieces(name):
                total += piece.of(gradient).square().sum() / (piece.copies * everywhere)
        dist.all_reduce(total)  # of all copies, so that none of them drifts from the others
        return (total / self.grid.replicate).sqrt()

    # What is written and read

    def first_does(self, work: Callable[[], T]) -> T:
        """Return what the first worker finds, on all workers; raise its error on all."""
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = work()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise shared(box[1]) if isinstance(box[1], InterlaceError) else box[1]
        found: T = box[0]
        return found

    def check_common(self, folder: Path) -> None:
        """Raise RunError unless all workers see one folder."""
        mark = folder / f"common-{os.getpid()}{PARTIAL}"
        name = self.first_does(lambda: (mark.write_text("seen"), mark.name)[1])
        until = time.monotonic() + SEEN_SECONDS
        while not (seen := name in os.listdir(folder) if folder.is_dir() else False) and time.monotonic() < until:
            time.sleep(0.5)
        blind = torch.tensor([int(not seen) * (self.rank + 1)])
        dist.all_reduce(blind, op=dist.ReduceOp.MAX, group=self._background)
        self.first_does(mark.unlink)
        if int(blind):
            raise shared(
                RunError(
                    f"{folder}: worker {int(blind) - 1} does not see what worker 0 writes there; give all machines one "
                    "disk, and name a folder on it as --out"
                )
            )

    def agree(self, what: str, value: str) -> None:
        """Raise ConfigError, naming the worker, unless all workers have the same."""
        agree(what, value)

    def heads(self, x: Tensor) -> Tensor:
        """Return what all workers have that divide a layer, side by side along the last axis."""
        if self.grid.tensor == 1:
            return x
        found = [torch.empty_like(x) for _ in range(self.grid.tensor)]
        dist.all_gather(found, x.contiguous(), group=self._tensor)
        return torch.cat(found, dim=-1)

    def write(self, run: TrainingRun, saved: Saved, step: int, background: Background, last: bool) -> None:
        """Write a checkpoint in the background, each worker what it holds; the first one gives it its name.

        The last one of a run holds the whole model as well, as any other checkpoint does.
        """
        background.wait()
        tensors = tensors_of(saved, self.local)
        boxes = all_boxes(tensors, self.layouts, self._at)
        files = files_of(tensors, self.layouts)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * sum(x.nbytes for x in tensors.values())
        room = 2 * here < free_bytes()  # on this machine, for the copies of all its workers
        if room:
            boxes = {name: box.copied() for name, box in boxes.items()}
        models = self._whole_models(saved) if last else {}
        path = run.checkpoint_path(step)
        opened = ExitStack()
        partial = self.first_does(lambda: opened.enter_context(new_folder(path)))

        def work() -> None:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # a thread begins on the first one
            with opened:
                save(boxes, partial / STATE, self._background, files)
                if self.first:
                    run.fill_checkpoint(partial, lambda folder: self._describe(folder, saved, models))
            if self.first:
                run.drop_old_checkpoints()

        background.start(work)
        if not room:
            background.wait()

    def _describe(self, folder: Path, saved: Saved, models: Wholes) -> None:
        """Write what is beside the state: config, tokenizer and facts; at the end, whole models."""
        for name, model in models.items():
            (folder / name).mkdir(exist_ok=True)
            if isinstance(model, HybridLM):
                write_model(model, folder / name)
            else:
                write_adapter(saved.model, family_of_model(saved.model), folder / name, model)
        if not models:
            write_description(saved.model, folder)
        (folder / FACTS).write_text(json.dumps(dict(saved.facts)) + "\n", encoding="utf-8")

    def _whole_models(self, saved: Saved) -> Wholes:
        """Return the model, and that of averaged weights, by folder, on the first worker; elsewhere nothing."""
        found: Wholes = {}
        weights: dict[str, Mapping[str, Tensor]] = {".": kept_parameters(saved.model)}
        if saved.average is not None:
            weights[AVERAGE] = saved.average
        for folder, tensors in weights.items():
            kept = {}
            for name, x in tensors.items():  # one at a time is whole on the device
                whole = self.whole(name, self.local(x))
                if self.first and whole is not None:
                    kept[name] = whole.to("cpu", copy=True)
            if self.first:
                found[folder] = kept if saved.model.base else with_weights(saved.model, kept)
        return found

    def read(self, folder: Path, saved: Saved) -> dict[str, Tensor]:
        """Fill what lies here of a model, and of the average, from a checkpoint; return the moments that lie here."""
        if (folder / STATE).is_dir():
            return read(saved, folder / STATE, self.layouts, self._at, self.local)
        model = kept_parameters(saved.model)
        shapes = {name: self.layouts[name].shape for name in model}
        whole = {name: torch.empty(shape) for name, shape in shapes.items()}
        read_weights(saved.model, folder, whole)
        self._fill(model, whole)
        if saved.average is not None:  # one that was not kept before begins with the weights
            if (folder / AVERAGE).is_dir():
                read_weights(saved.model, folder / AVERAGE, whole)
            self._fill(saved.average, whole)
        moments = {}
        for key, tensor in read_moments(whole, folder).items():
            kind, _, name = key.partition("/")
            moments[key] = empty_moment(kind, model[name], self.local)
            self._fill({name: moments[key]}, {name: tensor})
        return moments

    @torch.no_grad()
    def _fill(self, into: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
        for name, x in into.items():
            for piece in self.pieces(name):
                piece.of(self.local(x)).copy_(piece.within(whole[name]))

    # What is brought together

    def whole(self, name: str, local: Tensor) -> Tensor | None:
        """Return a whole parameter, or what is laid out like it, on the first worker of each group that holds a model.

        Elsewhere, return None. Every worker calls this in turn with what lies here.
        """
        workers, me = dist.get_world_size(self._model), dist.get_rank(self._model)
        layout, local = self.layouts[name], local.detach().contiguous()
        shapes = self._shapes(layout)
        due = [math.prod(shape) if me == 0 else 0 for shape in shapes]
        came = local.new_empty(sum(due))
        sent = [local.numel()] + [0] * (workers - 1)
        dist.all_to_all_single(came, local.flatten(), due, sent, group=self._model)
        return None if me else self._assembled(layout, self._parts(came, shapes))

    def orthogonalise(
        self, weights: Sequence[nn.Parameter], momentum: Momentum, whole: Orthogonalise
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Bring each matrix to one worker, which orthogonalises it whole; yield each with what lies here of it.

        As many matrices as there are workers are on their way at a time, so each holds one of them whole.
        """
        workers = dist.get_world_size(self._model)
        for first in range(0, len(weights), workers):
            some = weights[first : first + workers]
            yield from zip(some, self._owned(some, [momentum(p) for p in some], whole), strict=True)

    def _owned(self, weights: Sequence[nn.Parameter], momenta: Sequence[Tensor], whole: Orthogonalise) -> list[Tensor]:
        """Orthogonalise at most one matrix on each worker: its pieces come, and those of its direction go back."""
        workers, me = dist.get_world_size(self._model), dist.get_rank(self._model)
        layouts = [self.layouts[self._names[p]] for p in weights]
        sent = [m.numel() for m in momenta] + [0] * (workers - len(weights))
        mine = layouts[me] if me < len(weights) else None
        shapes = [] if mine is None else self._shapes(mine)
        due = [math.prod(shape) for shape in shapes] or [0] * workers
        given = torch.cat([m.flatten() for m in momenta])
        came = given.new_empty(sum(due))
        dist.all_to_all_single(came, given, due, sent, group=self._model)
        if mine is not None:
            parts = self._parts(came, shapes)
            direction = whole(weights[me], self._assembled(mine, parts))
            for rank, part in enumerate(parts):  # views of `came`, which goes back
                for piece in mine.pieces(*self._held(mine, rank)):
                    piece.of(part).copy_(piece.within(direction))
        back = torch.empty_like(given)
        dist.all_to_all_single(back, came, sent, due, group=self._model)
        return [x.view(m.shape) for x, m in zip(back.split(sent[: len(weights)]), momenta, strict=True)]

    def _shapes(self, layout: Layout) -> list[tuple[int, ...]]:
        """Return the shapes of what each worker of a model holds of a parameter."""
        return [layout.local_shape(*self._held(layout, rank)) for rank in range(dist.get_world_size(self._model))]

    @staticmethod
    def _parts(came: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Return what came from each worker, the same memory."""
        return [x.view(shape) for x, shape in zip(came.split([math.prod(s) for s in shapes]), shapes, strict=True)]

    def _assembled(self, layout: Layout, parts: Sequence[Tensor]) -> Tensor:
        """Return a whole parameter from what all workers of a model hold of it."""
        full = parts[0].new_empty(layout.shape)
        for rank, part in enumerate(parts):
            for piece in layout.pieces(*self._held(layout, rank)):
                piece.within(full).copy_(piece.of(part))
        return full

    def _held(self, layout: Layout, rank: int) -> tuple[int, int]:
        """Return the place, (cut, tensor), of a rank of the group that holds a model."""
        cut, tensor = divmod(rank, self.grid.tensor)
        return (cut if layout.shards > 1 else 0), tensor


def shared(error: E) -> E:
    """Mark an error that all workers raise: none tells it to another, and the first one says it."""
    error.shared = True
    return error


def agree(what: str, value: str) -> None:
    """Raise ConfigError, naming the worker, unless all workers have the same value."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    for rank, theirs in enumerate(found):
        if theirs != found[0]:
            raise shared(
                ConfigError(
                    f"worker {rank}: has another {what} than worker 0 ({theirs!s:.40} and not {found[0]!s:.40}); give "
                    "all workers the same recipe, changes, files and versions"
                )
            )


def filled(batch: Batch, places: int, least: int = 1) -> Batch:
    """Return a batch whose tokens can be cut into equal stretches, with single tokens that count for nothing.

    least: tokens that a stretch must have, such as those that a convolution looks back.
    """
    total = max(batch.segments.total, places * least)
    missing = total + -total % places - batch.segments.total
    if not missing:
        return batch
    more = torch.full((missing,), IGNORE)
    segments = Segments.from_lengths([*batch.segments.lengths, *([1] * missing)])
    return Batch(
        torch.cat((batch.tokens, batch.tokens[:1].expand(missing))),
        torch.cat((batch.targets, more)),
        segments,
        None if batch.weights is None else torch.cat((batch.weights, torch.zeros(missing))),
        batch.whole,
        batch.share,
    )
