"""Bits per byte of a text: comparable across tokenizers, since it counts the text's bytes and not its tokens."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import user_path
from interlace.data.batches import IGNORE, Batch, batches
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.model.model import HybridLM
from interlace.text.rows import text_blocks
from interlace.train.workers import Alone

BLOCK = 1024  # tokens whose logits exist at a time
CHARACTERS = (8, 256)  # of a text that are read for each token that is scored: at first, at most


def nats_of(logits: Tensor, targets: Tensor) -> float:
    """Return -log p of targets [rows] under logits [rows, vocabulary], summed."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return -float(log_p.gather(1, targets.to(log_p.device)[:, None]).double().sum())


class HeldOut:
    """A fixed part of a corpus' held-out split: the same rows for every model and every call."""

    def __init__(self, corpus: Corpus, length: int, tokens: int, rows: int = 8):
        """Take at most `tokens` tokens, in rows of `length` as in training."""
        split = corpus.splits["held_out"]
        if split.kind == "pair":
            raise DataError("held-out text: holds pairs of answers, which are not scored in bits per byte")
        length = min(length, split.count - 1)
        rows = max(1, min(rows, (split.count - 1) // length, tokens // length))
        try:
            read = batches(split, rows, length, seed=0)
        except DataError as error:
            raise DataError(f"held-out text: {error}") from None
        self.batches = [read.batch(i) for i in range(max(1, min(read.per_epoch, tokens // read.tokens)))]
        self.byte_lengths = corpus.tokenizer.byte_lengths()
        begin = corpus.tokenizer.begin
        self.leads = [_lead_bytes(corpus.tokenizer, batch, begin[-1]) if begin else 0 for batch in self.batches]

    @torch.no_grad()
    def score(self, model: HybridLM, workers: Alone | None = None) -> dict[str, float]:
        """Return {"held_out_bits_per_byte", "held_out_loss" in nats per token}, over tokens that stand for text.

        The first token of a row's piece of a document has no context in its row and is not scored. Of conversations,
        only the assistant's turns are scored.

        workers: who share the batches among them; each calls this, and has the score of all.
        """
        workers = workers or Alone()
        training = model.training
        model.eval()
        nats, size_bytes, count = 0.0, 0, 0
        reader, readers = workers.reader
        for turn in range(-(-len(self.batches) // readers)):
            place = turn * readers + reader
            batch, lead = self.batches[place % len(self.batches)], self.leads[place % len(self.batches)]
            hidden, _, _ = model.hidden(batch.tokens.to(model.device), batch.segments)
            if place >= len(self.batches):  # which another scores; all workers pass through the model as often
                continue
            lengths = self.byte_lengths[batch.targets.clamp(min=0)]
            scored = (batch.targets != IGNORE) & (lengths > 0)
            for rows in torch.arange(hidden.shape[0]).split(BLOCK):
                rows = rows[scored[rows]]
                nats += nats_of(model.logits(hidden[rows.to(hidden.device)]), batch.targets[rows])
            size_bytes += int(lengths[scored].sum()) - lead
            count += int(scored.sum())
        model.train(training)
        here = model.device if workers.count > 1 else "cpu"  # some devices have no float64
        sums = torch.tensor([nats, size_bytes, count], dtype=torch.float64, device=here)
        nats, size_bytes, count = workers.total(sums).tolist()
        return {
            "held_out_bits_per_byte": nats / math.log(2) / max(1, size_bytes),
            "held_out_loss": nats / max(1, count),
        }


def _lead_bytes(tokenizer: Tokenizer, batch: Batch, begin: int) -> int:
    """Return how many bytes fewer the first tokens of this batch's documents have than in the middle of a text."""
    first = (batch.tokens == begin) & (batch.targets != IGNORE)
    return sum(tokenizer.lead_bytes([token]) for token in batch.targets[first].tolist())


def first_ids(tokenizer: Tokenizer, file: Path, most: int) -> list[int]:
    """Return the first `most` ids of a text file.

    Only the beginning is read: twice as much each time, until the ids no longer change.

    Raises:
        DataError: the file cannot be read as text.
    """
    blocks, held, before = text_blocks(file), "", None
    size, longest = (n * most for n in CHARACTERS)
    while True:
        while len(held) <= size and (block := next(blocks, "")):
            held += block
        ids = tokenizer.encode_text(held[:size])[:most]
        if len(held) <= size or size >= longest or (ids == before and len(ids) == most):
            return ids
        before, size = ids, 2 * size


@torch.inference_mode()
def score_text(model: HybridLM, file: Path, most_tokens: int = 65_536) -> float:
    """Return bits per byte of a text file read as one sequence; the first token has no context and is not scored.

    Only the beginning that is scored is read: at most 256 characters for each of `most_tokens`.

    Raises:
        DataError: the file cannot be read as text, or holds fewer than two tokens.
        ConfigError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ConfigError("model: has no tokenizer, so a text cannot be scored")
    file = user_path(file)
    read = first_ids(model.tokenizer, file, most_tokens)
    if (largest := max(read, default=0)) >= model.config.vocabulary:
        raise ConfigError(
            f"{file}: holds the token {model.tokenizer.fast.id_to_token(largest)!r} (id {largest}), but the model's "
            f"vocabulary ends at {model.config.vocabulary - 1}"
        )
    ids = torch.tensor(read, dtype=torch.int64)
    if ids.numel() < 2:
        raise DataError(f"{file}: holds {ids.numel()} tokens, and a score needs at least 2; name a longer text")
    nats, state = 0.0, None
    for start in range(0, ids.numel() - 1, BLOCK):
        stop = min(start + BLOCK, ids.numel() - 1)
        logits, state = model(ids[start:stop].to(model.device), state=state)
        nats += nats_of(logits, ids[start + 1 : stop + 1])
    size_bytes = int(model.tokenizer.byte_lengths()[ids[1:]].sum())
    begun = len(model.tokenizer.begin)
    if begun:  # then the text's own first token is scored too
        size_bytes -= model.tokenizer.lead_bytes(read[begun:])
    return nats / math.log(2) / max(1, size_bytes)
