"""How training runs a block: compiled, done a second time in the backward pass to save memory, both, or neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interlace.base.errors import ConfigError, first_line
from interlace.layers.base import Stream
from interlace.layers.block import Block
from interlace.layers.moe import Load
from interlace.model.model import Through

RECOMPILES = 64  # of one function: kinds of block, equal and ragged sequences, a first size and any size


def through(compile: bool, recompute: str, backend: str = "inductor", draws: bool = False) -> Through | None:
    """Return how a model's blocks are run; None to call them.

    Args:
        compile: whether torch.compile makes one graph of each kind of block.
        recompute: "none", or "block": a block keeps its input alone, and is run again in the backward pass.
        backend: of torch.compile.
        draws: whether layers draw random numbers (the dropout of adapters), which a second run must draw again.

    Raises, when the result is called:
        ConfigError: a block cannot be compiled here.
    """
    again = recompute == "block"
    if not (compile or again):
        return None
    run = compiled(backend, True if again else None) if compile else _plain  # both runs must take the same graph
    warm: set[int] = set()

    def one(block: Block, x: Tensor, stream: Stream) -> tuple[Tensor, Load | None]:
        block.prepare(stream)  # else a second run would find what the first one made
        if compile and id(block) not in warm:
            block.run(
                x.detach(), stream, None
            )  # backends are loaded, and kernels checked on a GPU, where nothing is traced
            warm.add(id(block))
        return _again(run, block, x, stream, draws) if again else run(block, x, stream)

    return one


def _plain(block: Block, x: Tensor, stream: Stream) -> tuple[Tensor, Load | None]:
    x, _, load = block.run(x, stream, None)
    return x, load


def _again(run: Through, block: Block, x: Tensor, stream: Stream, draws: bool) -> tuple[Tensor, Load | None]:
    found: tuple[Tensor, Load | None] = checkpoint(run, block, x, stream, use_reentrant=False, preserve_rng_state=draws)
    return found


def compiled(backend: str, any_size: bool | None) -> Through:
    """Return a function that runs blocks by torch.compile: one graph for each kind of block, of any number of tokens.

    Args:
        backend: of torch.compile.
        any_size: whether a graph is for any number of tokens at once; None for a first one of the number it is given.
    """
    traced: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] = torch.compile(
        _traced, fullgraph=True, backend=backend, dynamic=any_size
    )

    def run(block: Block, x: Tensor, stream: Stream) -> tuple[Tensor, Load | None]:
        torch._dynamo.maybe_mark_dynamic(stream.segments.offsets, 0)
        try:
            with torch._dynamo.config.patch(recompile_limit=RECOMPILES):
                x, counts, scores = traced(block, x, stream)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(
                f"train.compile: a block of {_name(block)} cannot be compiled here: {first_line(error)}; set "
                "train.compile = false"
            ) from error
        return x, None if counts is None or scores is None else Load(counts, scores)

    return run


def _traced(block: Block, x: Tensor, stream: Stream) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x, _, load = block.run(x, stream, None)
    return (x, None, None) if load is None else (x, load.counts, load.scores)


def _name(block: Any) -> str:
    return type(block.mixer if block.has_mixer else block.mlp).__name__
