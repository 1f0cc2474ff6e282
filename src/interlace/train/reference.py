"""Log-probabilities of the answers of pairs under the reference, computed once and kept in the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interlace.base.errors import ConfigError, DataError
from interlace.checkpoint.fingerprint import fingerprint
from interlace.checkpoint.load import load
from interlace.data.batches import Pairs
from interlace.data.tokens import Corpus
from interlace.model.model import HybridLM
from interlace.runs.lines import Lines, whole_lines
from interlace.runs.progress import Progress, Watch
from interlace.runs.training import TrainingRun
from interlace.train.corpus import steps_of
from interlace.train.objectives.preference import pair_log_probs
from interlace.train.recipe import Recipe

FOLDER = "reference"
TOGETHER = 32  # pairs, next to each other in the split, that are computed at a time: their numbers are the same always
HELD_OUT_SEED = 0


def pairs_of(corpus: Corpus, recipe: Recipe, split: str) -> Pairs:
    """Return the pairs of a split as batches.

    Raises:
        DataError: none is short enough.
    """
    data = recipe.data
    seed = recipe.train.seed if split == "train" else HELD_OUT_SEED
    return Pairs(corpus.splits[split], data.rows, data.length, seed)


def held_out_places(corpus: Corpus, recipe: Recipe) -> list[np.ndarray]:
    """Return the places of the held-out pairs that a run scores, batch by batch."""
    try:
        pairs = pairs_of(corpus, recipe, "held_out")
    except DataError as error:
        raise DataError(f"held-out pairs: {error}") from None
    steps = max(1, min(pairs.per_epoch, recipe.train.evaluation_tokens // pairs.tokens))
    return [pairs.documents[pairs.chosen(step)] for step in range(steps)]


def prepare_reference(
    run: TrainingRun, recipe: Recipe, corpus: Corpus, precision: str, device: str, watch: Watch
) -> None:
    """Compute what is not in the run folder yet; a run that was killed goes on with the next pairs.

    Raises:
        RunError: the reference is not the checkpoint that the run began with.
        ConfigError: it has another tokenizer.
    """
    source = recipe.objective.reference or recipe.train.start
    run.check("reference", fingerprint(source), f"objective.reference: {source}")
    train = pairs_of(corpus, recipe, "train")
    read = min(steps_of(recipe), train.per_epoch)
    whole = steps_of(recipe) >= train.per_epoch
    wanted = {
        "train": train.documents if whole else np.concatenate([train.documents[train.chosen(i)] for i in range(read)]),
        "held_out": np.concatenate(held_out_places(corpus, recipe)),
    }
    left = {name: _blocks_left(run.path, name, places) for name, places in wanted.items()}
    if not any(left.values()):
        return
    frozen = recipe.train.lora is not None and not recipe.objective.reference
    dtype = getattr(torch, precision) if frozen else torch.float32  # as the weights beside adapters are stored
    model, done, total = load(source, dtype=dtype, device=device), 0, sum(map(len, left.values()))
    if model.tokenizer is not None and model.tokenizer.hash() != corpus.tokenizer.hash():
        raise ConfigError(
            f"objective.reference: {source}: has another tokenizer than the data; its log-probabilities would be of "
            "other tokens; name a checkpoint with the same"
        )
    model.eval()
    for name, blocks in left.items():
        pairs = pairs_of(corpus, recipe, name)
        with closing(Lines(run.path / FOLDER / f"{name}.jsonl")) as lines:
            for block in blocks:
                watch(Progress("reference", done, total))
                places, found = _log_probs(model, pairs, block, precision)
                lines.append({"block": block, "pairs": places, "log_probs": found})
                done += 1


@torch.no_grad()
def _log_probs(model: HybridLM, pairs: Pairs, block: int, precision: str) -> tuple[list[int], list[list[float]]]:
    """Return the places of the pairs in a block, and the log-probabilities of their answers."""
    places = pairs.documents
    places = places[(places >= block * TOGETHER) & (places < (block + 1) * TOGETHER)]
    found = pair_log_probs(model, pairs.of(places), precision)
    return places.tolist(), found.sums.tolist()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Return the blocks of a file, up to a line that was cut off.

    Raises:
        DataError: a line is damaged.
    """
    return whole_lines(path, _is_block, DataError, "is damaged; remove the file, and it is computed again")


def _is_block(row: Any) -> bool:
    return len(row["pairs"]) == len(row["log_probs"]) and all(len(x) == 2 for x in row["log_probs"])


def _blocks_left(run: Path, split: str, places: np.ndarray) -> list[int]:
    """Return the blocks in which a pair that is wanted is not known; another data.length may want more of a block."""
    rows = _rows(run / FOLDER / f"{split}.jsonl")
    known = np.array(sorted({int(place) for row in rows for place in row["pairs"]}), dtype=np.int64)
    return [int(block) for block in np.unique(places[~np.isin(places, known)] // TOGETHER)]


def read_reference(run: Path, split: str, documents: int) -> Tensor:
    """Return what was computed of a split, float64 [documents, 2]; NaN where nothing was.

    Raises:
        DataError: the file is damaged.
    """
    found = torch.full((documents, 2), torch.nan, dtype=torch.float64)
    for row in _rows(run / FOLDER / f"{split}.jsonl"):
        places, values = torch.tensor(row["pairs"]), torch.tensor(row["log_probs"], dtype=torch.float64)
        found[places] = torch.where(found[places].isnan(), values, found[places])  # what was used already stays
    return found
