"""Bits per byte of whole documents, one item each, by how far into a text a byte lies and by the text's length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import user_path
from interlace.data.sources import Document, Sources, is_hub
from interlace.evaluate.likelihood import text_nats
from interlace.model.model import HybridLM
from interlace.train.corpus import stamp

TOKENS = 16_384  # read together
FIRST_EDGE = 256  # bytes: positions are told apart at 256, 1,024, 4,096, ...
LENGTH = 4096  # tokens that are read at a time, if the model's limit allows

Row = dict[str, Any]


@dataclass(frozen=True)
class Texts:
    """Documents to score.

    Attributes:
        documents: in order.
        known: what they depend on, as one hash.
        length: tokens that are read at a time; a longer document is read in windows, each from nothing.
    """

    documents: tuple[Document, ...]
    known: str
    length: int


def read_texts(source: Sequence[str], text_field: str, limit: int | None, length: int) -> Texts:
    """Read the documents of some files.

    Raises:
        DataError: they hold no text.
    """
    sources = Sources([one if is_hub(one) else user_path(one) for one in source], text_field, cut=False)
    documents = tuple(islice(iter(sources), limit))
    if other := next((d for d in documents if d.kind != "text"), None):
        raise DataError(f"{other.name}: is a {other.kind}; --data scores texts")
    return Texts(documents, f"{stamp(sources)[:16]} {len(documents)}", length)


def edge_of(place: int) -> int:
    """Return the first byte of the range that a position, or a length, belongs to."""
    edge, next_edge = 0, FIRST_EDGE
    while place >= next_edge:
        edge, next_edge = next_edge, next_edge * 4
    return edge


def windows(texts: Texts, model: HybridLM) -> list[list[tuple[int, list[int]]]]:
    """Return batches of (document, ids of a window), which depend on the texts and the tokenizer alone."""
    if model.tokenizer is None:
        raise ConfigError("model: has no tokenizer, so that it cannot read a text")
    limit = min(texts.length, model.config.max_positions or texts.length)
    batches: list[list[tuple[int, list[int]]]] = [[]]
    size = 0
    for number, document in enumerate(texts.documents):
        ids = model.tokenizer.encode_text(document.text)
        pieces = [ids[i : i + limit] for i in range(0, len(ids), limit)]
        tokens = sum(map(len, pieces))
        if batches[-1] and size + tokens > TOKENS:  # a document's windows stay together
            batches.append([])
            size = 0
        batches[-1] += [(number, piece) for piece in pieces if len(piece) > 1]
        size += tokens
    return [batch for batch in batches if batch]


@torch.inference_mode()
def score(texts: Texts, model: HybridLM, batch: Sequence[tuple[int, list[int]]]) -> list[Row]:
    """Score the documents of a batch; return what is kept of each: nats and bytes, in all and by position.

    The first token of a window has no context and does not count.
    """
    lengths, begin = model.tokenizer.byte_lengths(), len(model.tokenizer.begin)
    found: dict[int, Row] = {}
    places: dict[int, int] = {}  # bytes of a document before the next window
    for some in _in_reach(batch):
        for (number, ids), nats in zip(some, text_nats(model, [ids for _, ids in some]), strict=True):
            document = texts.documents[number]
            size = len(document.text.encode("utf-8", "replace"))
            row = found.setdefault(
                number,
                {
                    "item": number,
                    "group": str(edge_of(size)),
                    "name": document.name,
                    "nats": 0.0,
                    "bytes": 0,
                    "tokens": 0,
                    "by_position": {},
                },
            )
            first_window = number not in places
            place = places.get(number, 0) + int(lengths[ids[0]])
            for index, (token, value) in enumerate(zip(ids[1:], nats, strict=True), start=1):
                count = int(lengths[token])
                if first_window and index == begin:  # the first token of a text, after those that begin it
                    count -= model.tokenizer.lead_bytes([token])
                row["nats"] += value if count else 0.0
                row["bytes"] += count
                row["tokens"] += 1
                own = row["by_position"].setdefault(str(edge_of(place)), [0.0, 0])
                own[0] += value if count else 0.0
                own[1] += count
                place += count
            places[number] = place
    return list(found.values())


def _in_reach(batch: Sequence[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield the windows of a batch in groups of at most TOKENS, one window at least."""
    group: list[tuple[int, list[int]]] = []
    size = 0
    for one in batch:
        if group and size + len(one[1]) > TOKENS:
            yield group
            group, size = [], 0
        group.append(one)
        size += len(one[1])
    if group:
        yield group
