"""Read a cache: what a teacher said of the tokens of a batch, wherever these lie in the data."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interlace.base.errors import ConfigError, DataError
from interlace.checkpoint.tensors import read_header, read_into
from interlace.data.batches import Batch
from interlace.data.tokens import Corpus, TokenSplit
from interlace.ops.core.tables import on_device
from interlace.runs.lines import whole_lines
from interlace.train.cache.facts import Facts
from interlace.train.cache.shards import Layout, learnt_places
from interlace.train.objectives.distill import Drawn, Exact, Likeliest, Taught
from interlace.train.recipe import Divergence

OPENED = 32  # shards whose records are at hand
HEAD = "head.safetensors"


def layout_of(facts: Facts, records: int, draws: int) -> Layout:
    """Return the arrays of a shard of so many records, with so many different draws together."""
    ids = "<u2" if facts.tokens <= 1 << 16 else "<u4"
    if facts.records.kind == "draws":
        return Layout([("ids", ids, (draws,)), ("kinds", "<u1", (records,)), ("times", "<u1", (draws,))])
    if facts.records.kind == "top_k":
        shape = (records, min(facts.records.amount, facts.tokens))
        return Layout([("ids", ids, shape), ("log_probs", "<f2", shape)])
    return Layout([("hidden", "<f2", (records, facts.width))])


def shard_file(split: str, number: int) -> str:
    """Return the name of a shard's file."""
    return f"{split}-{number:05d}.bin"


def written_shards(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the lines of the shards that are whole, by split and number.

    Raises:
        DataError: a line is damaged.
    """
    found = {}
    for path in sorted(folder.glob("shards*.jsonl")):
        for row in whole_lines(
            path, _is_shard, DataError, "is damaged; remove the file, and its shards are made again"
        ):
            found[row["split"], row["shard"]] = row
    return found


def _is_shard(row: Any) -> bool:
    return isinstance(row["sha256"], str) and all(isinstance(row[key], int) for key in ("shard", "records", "draws"))


@dataclass(frozen=True)
class _Opened:
    """A shard whose bytes were compared.

    Attributes:
        arrays: as `layout_of` says.
        places: int32, of each token of the shard the number of its record.
        firsts: int64, of draws, the place of each record's first one.
    """

    arrays: Mapping[str, np.ndarray]
    places: np.ndarray
    firsts: np.ndarray | None


class Cache:
    """A teacher on disk.

    Attributes:
        facts: what it says of itself.
    """

    def __init__(self, folder: Path):
        """Open a cache; shards are read, and compared with their checksums, when a batch first needs them.

        Raises:
            DataError: it is damaged, or not whole.
        """
        self.folder, self.facts, self._shards = folder, Facts.read(folder), written_shards(folder)
        for split, borders in self.facts.borders.items():
            left = [n for n in range(len(borders) - 1) if (split, n) not in self._shards]
            if left:
                raise DataError(
                    f"{folder}: {len(left):,} of {len(borders) - 1:,} shards of {split} are not there yet; run the "
                    "`interlace distill logits` that made it again, and it goes on"
                )
        self._opened: OrderedDict[tuple[str, int], _Opened] = OrderedDict()

    def fingerprint(self) -> str:
        """sha256 of what it says of itself, and of all shards."""
        sums = {f"{split} {number}": row["sha256"] for (split, number), row in sorted(self._shards.items())}
        said = self.facts.model_dump() | {"teacher": ""}
        return hashlib.sha256(json.dumps([said, sums], sort_keys=True).encode()).hexdigest()

    def check(self, corpus: Corpus) -> None:
        """Raise ConfigError for a cache of other data, or of another tokenizer."""
        if self.facts.tokenizer != corpus.tokenizer.hash():
            raise ConfigError(
                f"{self.folder}: is of another tokenizer than the data's; make a cache of this data with a teacher "
                "that has its tokenizer"
            )
        if self.facts.data != corpus.fingerprint():
            raise ConfigError(
                f"{self.folder}: is of other data than {corpus.folder}; make a cache of this data with "
                f"`interlace distill logits {self.facts.teacher} --data {corpus.folder} --out DIR`"
            )

    def head(self, device: str, dtype: torch.dtype) -> Tensor:
        """Return the teacher's head [vocabulary, width]."""
        entry = read_header(self.folder / HEAD)["head"]
        head = torch.empty(entry.shape, dtype=torch.float32)
        read_into(entry, "head", head)
        return head.to(device, dtype)

    def records(self, split: str, tokens: TokenSplit, places: np.ndarray) -> dict[str, np.ndarray]:
        """Return the records of tokens at these places of a split, [places, ...]; draws are padded with share 0.

        Raises:
            DataError: a shard is damaged, or a place has no record.
        """
        shards = np.searchsorted(self.facts.borders[split], places, side="right") - 1
        found: dict[str, np.ndarray] = {}
        for number in np.unique(shards):
            rows = np.flatnonzero(shards == number)
            for name, values in self._of_shard(split, int(number), tokens, places[rows]).items():
                known = found.get(name)
                width = values.shape[1] if known is None else max(values.shape[1], known.shape[1])
                if known is None or known.shape[1] < width:
                    wider = np.zeros((len(places), width), values.dtype)
                    if known is not None:
                        wider[:, : known.shape[1]] = known
                    found[name] = known = wider
                known[rows, : values.shape[1]] = values
        return found

    def _of_shard(self, split: str, number: int, tokens: TokenSplit, places: np.ndarray) -> dict[str, np.ndarray]:
        shard = self._open(split, number, tokens)
        rows = shard.places[places - self.facts.borders[split][number]]
        if (rows < 0).any():
            raise DataError(f"{self.folder}: has nothing of a token of this batch; make the cache again")
        if self.facts.records.kind == "top_k":
            return {name: np.asarray(values[rows]) for name, values in shard.arrays.items()}
        if self.facts.records.kind == "hidden":
            return {"hidden": np.asarray(shard.arrays["hidden"][rows])}
        assert shard.firsts is not None
        kinds = shard.arrays["kinds"][rows].astype(np.int64)
        inside = np.arange(kinds.max())[None]
        there = inside < kinds[:, None]
        at = np.where(there, shard.firsts[rows][:, None] + inside, 0)
        shares = np.where(there, shard.arrays["times"][at], 0) / np.float32(self.facts.records.amount)
        return {"ids": np.where(there, shard.arrays["ids"][at], 0), "shares": shares.astype(np.float32)}

    def _open(self, split: str, number: int, tokens: TokenSplit) -> _Opened:
        key = split, number
        if key not in self._opened:
            row, (begin, end) = self._shards[key], self.facts.borders[split][number : number + 2]
            layout = layout_of(self.facts, row["records"], row["draws"])
            arrays = layout.read(self.folder / shard_file(split, number), row["sha256"])
            learnt = learnt_places(tokens, begin, end)
            places = np.where(learnt, np.cumsum(learnt) - 1, -1).astype(np.int32)
            firsts = None
            if "kinds" in arrays:
                ends = np.cumsum(arrays["kinds"], dtype=np.int64)
                firsts = ends - arrays["kinds"]
            self._opened[key] = _Opened(arrays, places, firsts)
            while len(self._opened) > OPENED:
                self._opened.popitem(last=False)
        self._opened.move_to_end(key)
        return self._opened[key]


@dataclass(frozen=True)
class Cached:
    """A teacher that was asked before; see `Live`.

    Attributes:
        cache: what it said.
        split: the train split, whose tokens a batch's places are of.
        head: of a cache of hidden states, [vocabulary, width].
        temperature, kind, mixture: of a cache of hidden states, as for `Exact`.
    """

    cache: Cache
    split: TokenSplit
    head: Tensor | None = None
    temperature: float = 1.0
    kind: Divergence = "forward_kl"
    mixture: float = 0.5

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return self.cache.facts.width

    def __call__(self, batch: Batch, places: Tensor) -> Taught:
        """Look up what was said."""
        assert batch.places is not None
        found = {
            name: on_device(torch.from_numpy(values), places.device)
            for name, values in self.cache.records("train", self.split, batch.places[places.cpu()].numpy()).items()
        }
        if self.head is not None:
            return Exact(found["hidden"].to(self.head.dtype), self.head, self.temperature, self.kind, self.mixture)
        if "shares" in found:
            return Drawn(found["ids"].long(), found["shares"])
        likely = found["log_probs"].float()  # rounded, so that they may add up to more than 1
        return Likeliest(found["ids"].long(), likely - likely.logsumexp(-1, keepdim=True).clamp(min=0))
