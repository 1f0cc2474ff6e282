"""The mean of several checkpoints of one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from interlace.base.errors import CheckpointError, ConfigError
from interlace.checkpoint.load import load
from interlace.checkpoint.save import save
from interlace.model.model import HybridLM


@torch.no_grad()
def average(sources: Sequence[str | Path], out: Path, tell: Callable[[int], None] = lambda _: None) -> HybridLM:
    """Write the mean of the weights of several checkpoints as a checkpoint like any other; return the model.

    Sums are float64, and one checkpoint at a time is in memory beside them.

    Args:
        sources: folders, run folders or hub ids, as for `load`.
        out: the folder to write.
        tell: called with how many were read.

    Raises:
        ConfigError: there are fewer than two.
        CheckpointError: they are not checkpoints of one model and one tokenizer.
    """
    if len(sources) < 2:
        raise ConfigError(f"CHECKPOINT: a mean is of at least two, got {len(sources)}; name more")
    model = load(sources[0])
    sums = {name: p.double() for name, p in model.named_parameters()}
    tell(1)
    for number, source in enumerate(sources[1:], start=2):
        other = load(source)
        _check_alike(model, other, sources[0], source)
        for name, p in other.named_parameters():
            sums[name] += p
        tell(number)
    for name, p in model.named_parameters():
        p.copy_(sums[name] / len(sources))
    save(model, out)
    return model


def _check_alike(one: HybridLM, other: HybridLM, first: str | Path, second: str | Path) -> None:
    a, b = (m.config.replace(tokens={}).to_dict() for m in (one, other))
    if a != b:
        key = next(k for k in dict.fromkeys((*a, *b)) if a.get(k) != b.get(k))
        raise CheckpointError(
            f"{second}: is another model than {first} ({key} is {b.get(key)!r:.80} and not {a.get(key)!r:.80}); a mean "
            "is of checkpoints of one model"
        )
    hashes = [None if m.tokenizer is None else m.tokenizer.hash() for m in (one, other)]
    if None not in hashes and hashes[0] != hashes[1]:
        raise CheckpointError(f"{second}: has another tokenizer than {first}; their weights mean other tokens")
