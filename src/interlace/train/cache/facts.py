"""What a cache says of itself: how its records were made, and of what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import read_json, write_file
from interlace.base.schema import Closed, validate

FILE = "cache.json"
Kind = Literal["draws", "top_k", "hidden"]
AMOUNTS = {"draws": 32, "top_k": 50, "hidden": 0}  # where none is named


class Records(Closed):
    """How a teacher's distributions are kept.

    Attributes:
        kind: "draws" (tokens that are drawn from it, which is unbiased), "top_k" (the likeliest tokens, and the rest as
            one), or "hidden" (what the teacher's head reads, with the head: the whole distribution).
        amount: draws for each token, or the number of likeliest tokens; 0 for "hidden".
        temperature: of the softmax; 1 for "hidden", which serves any.
        seed: of the draws.
    """

    kind: Kind = "draws"
    amount: int = Field(default=32, ge=0, le=255)
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    seed: int = Field(default=0, ge=0)


class Facts(Closed):
    """The first file of a cache.

    Attributes:
        format: 1.
        records: as they were asked for.
        teacher, teacher_fingerprint: the checkpoint.
        data: the fingerprint of the prepared data.
        tokenizer: its hash.
        tokens: of the vocabulary that both know, the tokenizer's.
        width: of "hidden", elements of a record.
        borders: of each split, where its shards begin, and its end.
    """

    format: Literal[1] = 1
    records: Records
    teacher: str
    teacher_fingerprint: str
    data: str
    tokenizer: str
    tokens: int
    width: int
    borders: dict[str, list[int]]

    def write(self, folder: Path) -> None:
        """Write it."""
        write_file(folder / FILE, json.dumps(self.model_dump(), indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> Facts:
        """Return what a folder's file says.

        Raises:
            DataError: it is missing or damaged.
        """
        if not (folder / FILE).is_file():
            raise DataError(
                f"{folder}: is no cache of a teacher, as it has no {FILE}; make one with `interlace distill logits`"
            )
        try:
            return validate(Facts, read_json(folder / FILE, "cache"), "cache")
        except ConfigError as error:
            raise DataError(f"{folder / FILE}: is damaged: {error}; make the cache again") from None


def check_records(records: Records) -> None:
    """Raise ConfigError for numbers that say nothing of their kind."""
    if records.kind == "hidden" and (records.amount or records.temperature != 1):
        raise ConfigError(
            "kind: hidden keeps the whole distribution at any temperature; leave amount and temperature out"
        )
    if records.kind != "hidden" and not records.amount:
        raise ConfigError(f"amount: of {records.kind} must be from 1 to 255, got 0")
