"""The only decoding loop: texts, conversations, batches and local teachers all call it.

Prompts are read a bounded number of tokens at a time; then one token of each sequence follows another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.generation.capture import Decoder
from interlace.generation.prompts import memory_for
from interlace.generation.sampling import Draws, Sampling
from interlace.model.model import HybridLM
from interlace.model.state import ModelState

PREFILL = 4096  # prompt tokens read at a time, of all sequences together, which bounds memory


@dataclass
class Continuation:
    """A sequence to continue; it is drawn as if it were alone.

    Attributes:
        prompt: int64 [T], tokens to read first.
        max_tokens: the most to make.
        sampling: how tokens are drawn.
        generator: the random generator of its draws.
        made: tokens so far, without the one that ended them.
        ended: whether an end-of-text token came, and not max_tokens.
    """

    prompt: Tensor
    max_tokens: int
    sampling: Sampling
    generator: torch.Generator
    made: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def done(self) -> bool:
        """Whether no more tokens are made."""
        return self.ended or len(self.made) >= self.max_tokens


def decode(
    model: HybridLM,
    rows: Sequence[Continuation],
    ends: Sequence[int] = (),
    state: ModelState | None = None,
    keep: Callable[[ModelState], None] | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield (which row, its next token) as they come, until every row is done.

    Args:
        ends: tokens that end a sequence beside the model's own.
        state: of a single row, what it saw before its prompt; used up.
        keep: given the state after all that was made, which is then read to the last token.

    Raises:
        Failure: memory does not hold the state.
    """
    stops = {*model.config.tokens.eos, *ends}
    reserve = max(row.prompt.shape[0] + row.max_tokens for row in rows)
    with memory_for(len(rows) * reserve):
        with torch.inference_mode():
            logits, state = read_prompts(model, [row.prompt for row in rows], reserve, state)
            decoder, live = Decoder(model, state), list(range(len(rows)))  # the row of each sequence in the state
        draws = _draws(rows, live, logits)
        while True:
            tokens, placed = draws(logits, [not rows[index].done for index in live])
            going, drawn = [], [0] * len(live)
            for place, index in enumerate(live):
                row = rows[index]
                if row.done:
                    continue
                token = tokens[place]
                if token in stops:
                    row.ended = True
                    continue
                row.made.append(token)
                drawn[place] = token
                yield index, token
                if keep is not None or not row.done:
                    going.append(place)
            if not going:
                break
            if 2 * len(going) <= len(live):  # rows that have ended cost as much as the others
                live, drawn = [live[p] for p in going], [drawn[p] for p in going]
                with torch.inference_mode():
                    decoder = Decoder(model, decoder.state.select(going))
                draws, placed = _draws(rows, live, logits), None
            logits = decoder.step(torch.tensor(drawn, device=model.device) if placed is None else placed)
    if keep is not None:
        keep(decoder.state)


def _draws(rows: Sequence[Continuation], live: Sequence[int], logits: Tensor) -> Draws:
    some = [rows[index] for index in live]
    return Draws([row.sampling for row in some], [row.generator for row in some], logits.device)


def read_prompts(
    model: HybridLM, prompts: Sequence[Tensor], reserve: int, state: ModelState | None = None
) -> tuple[Tensor, ModelState]:
    """Return logits [N, vocabulary] after each prompt, and the state, whose caches have space for `reserve` tokens.

    At most PREFILL tokens are in flight: short prompts are read together, a long one in parts.
    """
    groups = grouped([prompt.shape[0] for prompt in prompts])
    if len(groups) == 1:
        return _read_group(model, prompts, model.empty_state(len(prompts), reserve) if state is None else state)
    whole, found = model.empty_state(len(prompts), reserve), []
    for rows in groups:
        logits, part = _read_group(model, [prompts[r] for r in rows], model.empty_state(len(rows)))
        whole.write(rows, part)
        found.append(logits)
    return torch.cat(found), whole


def grouped(lengths: Sequence[int]) -> list[list[int]]:
    """Return prompts in order, in groups of at most PREFILL tokens; a longer prompt is a group by itself."""
    groups: list[list[int]] = []
    size = 0
    for row, length in enumerate(lengths):
        if not groups or size + length > PREFILL:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += length
    return groups


def _read_group(model: HybridLM, prompts: Sequence[Tensor], state: ModelState) -> tuple[Tensor, ModelState]:
    if len(prompts) > 1:
        segments = Segments.from_lengths([prompt.shape[0] for prompt in prompts])
        return model(torch.cat(list(prompts)), segments, state, last_only=True)
    for part in prompts[0].split(PREFILL):
        logits, state = model(part, state=state, last_only=True)
    return logits, state
