"""Predict the peak memory of a training step, and say what would fit where one did not.

A block of each kind is run alone, forward and backward, for one row and for two. What it keeps for its backward, and
what it needs beside that, grow linearly with the tokens: kernels keep no matrix of tokens by tokens. For a CPU this is
done on the meta device, where tensors have sizes and no memory; for a GPU on the GPU itself, since its kernels, and the
precision it computes in, decide what is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interlace.base.errors import Failure
from interlace.base.segments import Segments
from interlace.layers.base import Stream
from interlace.layers.block import Block
from interlace.model.config import ModelConfig
from interlace.model.memory import Alive
from interlace.model.sizes import sizes
from interlace.train.objectives.next_token import BLOCK_ELEMENTS, GPU_ELEMENTS
from interlace.train.optimizer import HeldBytes, held_bytes
from interlace.train.recipe import Recipe, TrainSettings
from interlace.train.teacher import teacher_bytes
from interlace.train.trained import laid_out_model, trained_alike

USABLE = 0.95  # share of the memory that is there; the rest is lost between blocks of the allocator


class Line(NamedTuple):
    """Bytes that grow with the tokens of a batch."""

    fixed: float
    per_token: float

    def at(self, tokens: int) -> int:
        """Return the bytes for so many tokens."""
        return round(self.fixed + self.per_token * tokens)


class BlockMemory(NamedTuple):
    """What one block takes.

    Attributes:
        kept: what its backward needs, its input included, weights left out.
        working: what lives beside that at once, at most, in its forward or its backward; gradients included.
    """

    kept: Line
    working: Line


@dataclass(frozen=True)
class StepMemory:
    """The predicted peak of a training step, in bytes.

    Attributes:
        weights: with the optimizer's moments and the moving average, in float32.
        gradients: of all weights, in float32.
        activations: what all blocks keep for the backward.
        block: what the block that needs most takes beside that, while its gradients are computed.
        loss: logits, and gradients of the head and of what it reads.
        peak: the most at one moment; not all parts live at once.
        teacher: of a run that distils, the teacher's weights and what it computes a batch in.
    """

    weights: int
    gradients: int
    activations: int
    block: int
    loss: int
    peak: int
    teacher: int = 0

    def to_dict(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Footprint:
    """What a model's parts take in training, measured once for all numbers of rows.

    Attributes:
        config: the model.
        blocks: each block in order.
        ends: the last norm.
        element_bytes: of an element of the products: 4, or 2 in bfloat16.
        logits: elements of the logits that exist at a time.
        settings: what is trained; all of it if None.
        frozen_bytes: of an element of a weight that adapters stand beside.
    """

    config: ModelConfig
    blocks: tuple[BlockMemory, ...]
    ends: BlockMemory
    element_bytes: int
    logits: int
    settings: TrainSettings | None = None
    frozen_bytes: int = 4

    def of(self, recipe: Recipe, **changed: Any) -> StepMemory:
        """Predict a step of a recipe. changed: "rows", "length" or "recompute" in the place of the recipe's."""
        data, train = recipe.data, recipe.train
        tokens = changed.get("rows", data.rows) * changed.get("length", data.length)
        held = held_bytes(recipe.model, train, self.frozen_bytes)
        found = self.step(tokens, changed.get("recompute", train.recompute), train.accumulate, held)
        teacher = teacher_bytes(recipe.objective.teacher, -(-tokens // train.accumulate), self.element_bytes)
        return replace(found, teacher=teacher, peak=found.peak + teacher)

    def step(
        self, tokens: int, recompute: str = "none", accumulate: int = 1, held: HeldBytes | None = None
    ) -> StepMemory:
        """Predict a step on batches of so many tokens, computed in so many parts.

        held: of weights, moments, average and gradients; those of AdamW without an average if None.
        """
        tokens = -(-tokens // accumulate)
        model, width = sizes(self.config, ()), self.config.width
        head, again = 4 * self.config.vocabulary * width * self._head_trained, recompute == "block"
        residual = 4 if self.config.float32_residual else self.element_bytes
        kept = [residual * width * tokens if again else b.kept.at(tokens) for b in self.blocks]
        inside = [b.kept.at(tokens) - residual * width * tokens if again else 0 for b in self.blocks]
        whole = [b.working.at(tokens) + more for b, more in zip(self.blocks, inside, strict=True)]
        activations = sum(kept) + self.ends.kept.at(tokens) + 16 * tokens  # tokens and targets
        block, loss = max(whole), self._loss(tokens)
        weights, gradients = held or (12 * model.total, 4 * model.total)
        before = gradients if accumulate > 1 else 0  # of the parts before
        in_backward = before + activations + head + block
        peak = weights + max(before + activations + loss, in_backward, gradients + whole[0])
        return StepMemory(weights, gradients, activations, block, loss, peak)

    def _loss(self, tokens: int) -> int:
        """Return the bytes of the loss: a block of logits, the head's gradient, and that of what the head reads."""
        rows = max(1, min(tokens, self.logits // self.config.vocabulary))
        head = self.config.vocabulary * self.config.width
        low = self.element_bytes < 4
        several = tokens > rows  # then a block's part of the head's gradient lies beside the sum
        copies = low * self.element_bytes + several * self.element_bytes
        hidden = self.element_bytes * (tokens + low * rows) * self.config.width
        gradient = (4 + copies) * head if self._head_trained else 0
        return self.element_bytes * rows * self.config.vocabulary + hidden + gradient

    @property
    def _head_trained(self) -> bool:
        if self.settings is None:
            return True
        return "head" not in self.settings.freeze and (
            self.settings.lora is None or "head" in self.settings.lora.layers
        )


def footprint(
    config: ModelConfig,
    length: int,
    device: torch.device,
    precision: str = "float32",
    settings: TrainSettings | None = None,
) -> Footprint:
    """Measure what the parts of a model take, for rows of `length` tokens; on a GPU each kind of block is run there.

    Every row counts as one sequence. On the meta device all is float32.

    settings: what is trained; all of it if None.
    """
    planned = None if settings is None else laid_out_model(config, settings).blocks
    on_gpu = device.type not in ("cpu", "meta")
    place = device if on_gpu else torch.device("meta")
    low = precision == "bfloat16" and on_gpu
    known: dict[Any, BlockMemory] = {}
    blocks = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for index in range(config.depth):
            kinds = (config.kind(index), config.mlp_of(index))
            key = repr(kinds)
            if key not in known:
                with place:
                    block = Block(config.width, *kinds, config.norm_style, config.residual_multiplier).train()
                if planned is not None:
                    trained_alike(planned[index], block, torch.bfloat16 if low else None)
                known[key] = _measured(config, block, _through(block), length, place, low)
                del block
            blocks.append(known[key])
        with place:
            norm = config.norm_style.build(config.width)
        ends = _measured(config, norm, lambda x, _: norm(x), length, place, low)
    logits = GPU_ELEMENTS if on_gpu else BLOCK_ELEMENTS
    frozen = 2 if precision == "bfloat16" else 4
    return Footprint(config, tuple(blocks), ends, 2 if low else 4, logits, settings, frozen)


def _through(block: Block) -> Callable[[Tensor, Stream], Tensor]:
    def run(x: Tensor, stream: Stream) -> Tensor:
        out: Tensor = block(x, stream, None)[0]
        return out

    return run


def _measured(
    config: ModelConfig,
    module: nn.Module,
    run: Callable[[Tensor, Stream], Tensor],
    length: int,
    device: torch.device,
    low: bool,
) -> BlockMemory:
    """Measure a module for one row and for two."""
    dtype = torch.bfloat16 if low and not config.float32_residual else torch.float32
    found = []
    for rows in (1, 1, 2) if device.type == "cuda" else (1, 2):  # a GPU's first call makes tables and workspaces
        tokens = rows * length
        x = torch.zeros(tokens, config.width, dtype=dtype, device=device, requires_grad=True)
        places = torch.arange(length, device=device).repeat(rows)
        with torch.autocast(device.type, dtype=torch.bfloat16) if low else nullcontext():
            stream = Stream(Segments.equal(rows, length), places)
            if isinstance(module, Block):
                module.prepare(stream)
            kept = _kept(module, lambda x=x, stream=stream: run(x, stream))  # type: ignore[misc]
            peak = _peak(module, x, lambda x=x, stream=stream: run(x, stream))  # type: ignore[misc]
        found.append((kept, peak - kept))
        module.zero_grad(set_to_none=True)
    (kept, working), (kept_2, working_2) = found[-2:]
    return BlockMemory(_line(kept, kept_2, length), _line(working, working_2, length))


def _line(one: int, two: int, length: int) -> Line:
    slope = max(0, two - one)
    return Line(one - slope, slope / length)


def _kept(module: nn.Module, run: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd keeps of a call, weights left out; each storage counts once."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's address is used twice
    device = next(module.parameters()).device.type

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own and x.device.type == device:  # borders of sequences lie on the CPU
            kept[storage._cdata] = storage.nbytes()
            alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return sum(kept.values())


def _peak(module: nn.Module, x: Tensor, run: Callable[[], Tensor]) -> int:
    """Return the most bytes that live at once in a call and its backward: x and all that is made, not the weights."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        before = torch.cuda.memory_allocated(x.device) - x.untyped_storage().nbytes()
        torch.cuda.reset_peak_memory_stats(x.device)
        out = run()
        out.backward(torch.zeros_like(out))
        return torch.cuda.max_memory_allocated(x.device) - before
    with Alive(module.parameters()) as alive:
        out = run()
        out.backward(torch.zeros_like(out))
    return alive.peak


@contextmanager
def explained(recipe: Recipe, predict: Callable[[], Footprint]) -> Iterator[None]:
    """Turn the device's error for memory into one that says what would fit.

    Raises:
        Failure: there was too little memory inside.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error)
    else:
        return
    raise Failure(out_of_memory(recipe, said, predict()))


def out_of_memory(recipe: Recipe, said: str, parts: Footprint) -> str:
    """Return a message on what was asked for, what there was, and which change of the recipe would fit.

    said: the message of torch's error.
    """
    asked, total, free = (_bytes(said, words) for words in (r"Tried to allocate", r"total capacity of", r"of which"))
    ours = sum(_bytes(said, words) or 0 for words in (r"Of the allocated memory", r"by PyTorch, and"))
    data, recompute, peak = recipe.data, recipe.train.recompute, parts.of(recipe).peak
    sentence = "out of memory"
    if asked is not None:
        sentence += f": {_size(asked)} were asked for"
    if free is not None and total is not None:
        sentence += f", {_size(free)} of {_size(total)} were free"
    sentence += f"; a step with data.rows = {data.rows}, data.length = {data.length} and train.recompute = "
    sentence += f'"{recompute}" is predicted to take {_size(peak)}'
    room = None if total is None else USABLE * (total if not ours or free is None else min(total, free + ours))
    choices = [f"{change} ({_size(size)})" for change, size in changes(recipe, parts, room)]
    if not choices:
        return f"{sentence}; no smaller batch would fit: make the model smaller, or take a larger device"
    return f"{sentence}; {'would fit' if room is not None else 'smaller'} by the prediction: {', or '.join(choices)}"


def changes(recipe: Recipe, parts: Footprint, room: float | None) -> list[tuple[str, int]]:
    """Return (change of the recipe, predicted peak) for each that fits into `room` bytes; half if that is unknown."""
    data, found = recipe.data, []
    if recipe.train.recompute == "none":
        peak = parts.of(recipe, recompute="block").peak
        if room is None or peak <= room:
            found.append(('train.recompute = "block"', peak))
    for name, value, least in (("rows", data.rows, 1), ("length", data.length, 2)):
        while (value := value // 2) >= least:
            peak = parts.of(recipe, **{name: value}).peak
            if room is None or peak <= room:
                found.append((f"data.{name} = {value}", peak))
                break
    return found


def _bytes(said: str, words: str) -> int | None:
    """Return the bytes that stand behind these words in a message of torch."""
    found = re.search(words + r" ([\d.]+) (bytes|KiB|MiB|GiB|TiB)", said)
    if found is None:
        return None
    return round(float(found[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB").index(found[2]))


def _size(value: float) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value:.0f} B"
