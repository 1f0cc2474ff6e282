"""Make a cache: a teacher reads prepared data, document by document, and what it says is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interlace.base.errors import ConfigError, DataError, RunError
from interlace.base.segments import Segments
from interlace.checkpoint.fingerprint import fingerprint
from interlace.checkpoint.load import load
from interlace.checkpoint.tensors import write as write_tensors
from interlace.data.tokens import Corpus, TokenSplit
from interlace.layers.low_rank import with_adapter
from interlace.model.precision import choose_precision
from interlace.runs.lines import Lines
from interlace.runs.lock import hold_folder
from interlace.runs.progress import Progress, Watch, silent
from interlace.train.cache.cache import HEAD, layout_of, shard_file, written_shards
from interlace.train.cache.facts import FILE, Facts, Records, check_records
from interlace.train.cache.shards import borders_of, learnt_places
from interlace.train.objectives.next_token import block_rows
from interlace.train.teacher import check_tokens

PART = 4096  # tokens that are read at a time
SAMPLED = 4096  # tokens by which the size of draws is estimated


@dataclass(frozen=True)
class Size:
    """What a cache will take on disk.

    Attributes:
        records: tokens that have one.
        bytes_per_record: of each; of draws an estimate, from the first tokens.
    """

    records: int
    bytes_per_record: float

    @property
    def nbytes(self) -> int:
        """Bytes of all together."""
        return round(self.records * self.bytes_per_record)


class Writer:
    """Makes one cache.

    Attributes:
        facts: what it will say of itself.
        model: the teacher.
    """

    def __init__(self, teacher: str, data: Path, records: Records, device: str = "cpu"):
        """Open teacher and data.

        Raises:
            ConfigError: the records make no sense, or the teacher has another tokenizer. DataError, CheckpointError:
                what is read is missing or damaged, or the data are pairs.
        """
        check_records(records)
        self.corpus = Corpus.open(data)
        if self.corpus.splits["train"].pairs is not None:
            raise DataError(f"{data}: holds pairs of answers; a teacher is asked of texts and conversations")
        dtype = getattr(torch, choose_precision("auto", torch.device(device)))
        self.model = load(teacher, dtype=dtype, device=device).eval().requires_grad_(False)
        check_tokens(self.model, self.corpus, f"teacher: {teacher}")
        self._head = with_adapter(self.model.head)[: self.corpus.tokenizer.vocabulary].detach()
        self.facts = Facts(
            records=records,
            teacher=teacher,
            teacher_fingerprint=fingerprint(teacher),
            data=self.corpus.fingerprint(),
            tokenizer=self.corpus.tokenizer.hash(),
            tokens=self.corpus.tokenizer.vocabulary,
            width=self.model.config.width if records.kind == "hidden" else 0,
            borders={name: borders_of(split) for name, split in self.corpus.splits.items()},
        )

    def size(self) -> Size:
        """Return what the cache will take; of draws, the teacher reads some tokens for it."""
        records = sum(int(learnt_places(split, 0, split.count).sum()) for split in self.corpus.splits.values())
        asked, ids = self.facts.records, 2 if self.facts.tokens <= 1 << 16 else 4
        if asked.kind == "top_k":
            return Size(records, (ids + 2) * min(asked.amount, self.facts.tokens))
        if asked.kind == "hidden":
            return Size(records, 2 * self.facts.width)
        end = min(SAMPLED, self.corpus.splits["train"].count)
        kinds = [piece["kinds"] for piece, _ in self._said("train", 0, 0, end)]
        return Size(records, 1 + (ids + 1) * float(np.concatenate(kinds).mean()))

    def run(self, out: Path, part: tuple[int, int] = (0, 1), watch: Watch = silent) -> int:
        """Write the shards that are not there yet; return how many records were written.

        Args:
            out: the folder; one that holds a part of the same cache goes on.
            part: (k, n): only every n-th shard from the k-th on, where several processes share the work.
            watch: told how many tokens were read.

        Raises:
            RunError: the folder holds another cache, or something else; or another process writes it.
        """
        k, n = part
        self._begin(out)
        with hold_folder(out) if n == 1 else nullcontext():
            done = written_shards(out)
            shards = [(name, i) for name, borders in self.facts.borders.items() for i in range(len(borders) - 1)]
            mine = [shard for place, shard in enumerate(shards) if place % n == k and shard not in done]
            read, total, written = 0, sum(np.diff(self._ends(*shard))[0] for shard in mine), 0
            name = "shards.jsonl" if n == 1 else f"shards-{k}-of-{n}.jsonl"
            with closing(Lines(out / name)) as lines:
                for split, number in mine:
                    pieces = []
                    for piece, tokens in self._said(split, number, *self._ends(split, number)):
                        pieces.append(piece)
                        read += tokens
                        watch(Progress("asking the teacher", read, total))
                    row = self._write(out, split, number, pieces)
                    lines.append(row)
                    written += row["records"]
        return written

    def _begin(self, out: Path) -> None:
        """Write what the cache says of itself, or compare it with what is there."""
        if (out / FILE).is_file():
            theirs, ours = Facts.read(out).model_dump(), self.facts.model_dump()
            differ = [key for key in ours if key != "teacher" and ours[key] != theirs[key]]
            if differ:
                raise RunError(f"{out}: holds a cache with another {differ[0]}; name another --out")
            return
        if out.is_dir() and any(path for path in out.iterdir() if not path.name.startswith(".")):
            raise RunError(f"{out}: is not empty, and holds no cache; name another --out")
        out.mkdir(parents=True, exist_ok=True)
        if self.facts.records.kind == "hidden":
            write_tensors(out / HEAD, [("head", tuple(self._head.shape), self._head.cpu())])
        self.facts.write(out)

    def _ends(self, split: str, number: int) -> tuple[int, int]:
        begin, end = self.facts.borders[split][number : number + 2]
        return begin, end

    def _write(self, out: Path, split: str, number: int, pieces: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """Write a shard; return its line of the index."""
        names = [name for name, _, _ in layout_of(self.facts, 0, 0).arrays]
        arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
        drawn = "kinds" in arrays
        records, draws = len(arrays["kinds"] if drawn else arrays[names[0]]), len(arrays["ids"]) if drawn else 0
        size, digest = layout_of(self.facts, records, draws).write(out / shard_file(split, number), arrays)
        whole = {"split": split, "shard": number, "records": records, "draws": draws, "bytes": size}
        return {**whole, "sha256": digest}

    @torch.no_grad()
    def _said(self, split: str, number: int, begin: int, end: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """Yield (records, tokens read) of a stretch of a split, in order; what is drawn depends on the shard alone."""
        tokens, generator = self.corpus.splits[split], torch.Generator(self.model.device)
        generator.manual_seed((self.facts.records.seed << 24) + 2 * number + (split == "held_out"))
        learnt = torch.from_numpy(learnt_places(tokens, begin, end))
        place = begin
        for hidden in self._hidden(tokens, begin, end):
            wanted = learnt[place - begin : place - begin + hidden.shape[0]].to(hidden.device)
            place += hidden.shape[0]
            yield self._records(hidden[wanted], generator), hidden.shape[0]

    def _hidden(self, split: TokenSplit, begin: int, end: int) -> Iterator[Tensor]:
        """Yield what the head reads of all tokens, some at a time: documents together, a long one in parts."""
        borders = np.asarray(split.borders)
        first, last = np.searchsorted(borders, (begin, end))
        ends = [*borders[first + 1 : last].tolist(), end]
        limit = self.model.config.max_positions or end - begin
        group, start, place = list[int](), begin, begin
        for stop in ends:
            while place < stop:
                size = min(stop - place, limit)
                if group and place - start + size > PART:
                    yield self._read(split, start, group)
                    group, start = [], place
                if size > PART:
                    yield from self._in_parts(split, place, size)
                    start += size
                else:
                    group.append(size)
                place += size
        if group:
            yield self._read(split, start, group)

    def _read(self, split: TokenSplit, begin: int, lengths: list[int]) -> Tensor:
        tokens = torch.from_numpy(split.read(begin, begin + sum(lengths))).to(self.model.device)
        return self.model.read(tokens, Segments.from_lengths(lengths)).hidden

    def _in_parts(self, split: TokenSplit, begin: int, size: int) -> Iterator[Tensor]:
        state = self.model.empty_state(1, size)
        for place in range(begin, begin + size, PART):
            tokens = torch.from_numpy(split.read(place, min(place + PART, begin + size))).to(self.model.device)
            read = self.model.read(tokens, state=state)
            state = read.state
            yield read.hidden

    def _records(self, hidden: Tensor, generator: torch.Generator) -> dict[str, np.ndarray]:
        """Return the records of some tokens, given what the head reads of them, [rows, D]."""
        asked = self.facts.records
        if asked.kind == "hidden":
            half = hidden.to(torch.float16)
            if not bool(half.isfinite().all()):
                raise ConfigError("kind: the teacher's hidden states are past 65,504, the most of float16; keep draws")
            return {"hidden": half.cpu().numpy()}
        found: dict[str, list[np.ndarray]] = {}
        rows = block_rows(hidden.device, self.facts.tokens) // 4 or 1
        for block in hidden.split(rows) if hidden.shape[0] else [hidden]:
            likely = ((block @ self._head.T).float() / asked.temperature).log_softmax(-1)
            made = (
                _drawn(likely, asked.amount, generator) if asked.kind == "draws" else _likeliest(likely, asked.amount)
            )
            for name, values in made.items():
                found.setdefault(name, []).append(values.cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}


def _drawn(likely: Tensor, amount: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the different tokens of so many draws from log-probabilities [rows, V], and how often each came."""
    if not likely.shape[0]:
        return {name: likely.new_zeros(0, dtype=torch.int64) for name in ("ids", "kinds", "times")}
    ids = torch.multinomial(likely.exp(), amount, replacement=True, generator=generator).sort(dim=1).values
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    places = first.flatten().nonzero().squeeze(1)
    ends = torch.cat((places[1:], places.new_tensor([ids.numel()])))
    return {"ids": ids.flatten()[places], "kinds": first.sum(1), "times": ends - places}


def _likeliest(likely: Tensor, amount: int) -> dict[str, Tensor]:
    values, ids = likely.topk(min(amount, likely.shape[1]), dim=1)
    return {"ids": ids, "log_probs": values.clamp(min=torch.finfo(torch.float16).min)}
