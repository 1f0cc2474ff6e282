"""Many prompts at once: one ragged prefill, then one token of each at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interlace.base.errors import ConfigError, PromptTooLong
from interlace.base.segments import Segments
from interlace.generate.replay import Decoder
from interlace.generate.sampling import Sampling
from interlace.model.model import HybridLM


@dataclass
class Made:
    """What a prompt was continued with.

    Attributes:
        ids: tokens, without the one that ended them.
        ended: whether an end-of-text token came, and not max_tokens.
    """

    ids: list[int]
    ended: bool = False


@torch.inference_mode()
def generate_batch(
    model: HybridLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    samplings: Sequence[Sampling],
    seeds: Sequence[int],
    ends: Sequence[int] = (),
) -> list[Made]:
    """Continue every prompt until it ends or has its max_tokens; a row is drawn as if it were alone, from its own seed.

    Args:
        ends: tokens that end a text beside the model's own.

    Raises:
        PromptTooLong: a prompt and its max_tokens pass the model's limit. ConfigError: one is empty.
    """
    limit = model.config.max_positions
    for ids, most in zip(prompts, max_tokens, strict=True):
        if not ids or most < 1:
            raise ConfigError(f"prompt: {len(ids)} tokens to go on from and {most} to make; each must be at least 1")
        if limit is not None and len(ids) + most > limit:
            raise PromptTooLong(f"prompt: {len(ids)} tokens and {most} to make pass the model's limit of {limit}")
    stops = {*model.config.tokens.eos, *ends}
    made = [Made([]) for _ in prompts]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    flat = torch.tensor([t for ids in prompts for t in ids], device=model.device)
    segments = Segments.from_lengths([len(ids) for ids in prompts])
    state = model.empty_state(len(prompts), max(len(p) + m for p, m in zip(prompts, max_tokens, strict=True)))
    logits, state = model(flat, segments, state, last_only=True)
    live = list(range(len(prompts)))  # which prompt each row of the state belongs to
    decoder = Decoder(model, state)
    while True:
        tokens = [int(samplings[row].draw(logits[place], generators[row])) for place, row in enumerate(live)]
        going = []
        for place, (row, token) in enumerate(zip(live, tokens, strict=True)):
            if row_done(made[row], max_tokens[row]):
                continue
            if token in stops:
                made[row].ended = True
                continue
            made[row].ids.append(token)
            if not row_done(made[row], max_tokens[row]):
                going.append(place)
        if not going:
            return made
        if 2 * len(going) <= len(live):  # rows that have ended cost as much as the others
            live, tokens = [live[p] for p in going], [tokens[p] for p in going]
            decoder = Decoder(model, decoder.state.select(going))
        logits = decoder.step(torch.tensor(tokens, device=model.device))


def row_done(made: Made, most: int) -> bool:
    """Whether nothing more is made of a row."""
    return made.ended or len(made.ids) >= most
