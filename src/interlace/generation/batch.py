"""Many prompts at once: one ragged prefill, then one token of each at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interlace.base.errors import ConfigError, PromptTooLong
from interlace.base.segments import Segments
from interlace.generation.capture import Decoder
from interlace.generation.sampling import Sampling
from interlace.generation.text import check_count, checked_prompt, memory_for, prompt_tokens, seeded
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
        PromptTooLong: a prompt and its max_tokens pass the model's limit. ConfigError: one is empty, or they are not
            equally many.
    """
    limit = model.config.max_positions
    sizes = {"prompts": prompts, "max_tokens": max_tokens, "samplings": samplings, "seeds": seeds}
    if len({len(x) for x in sizes.values()}) > 1 or not prompts:
        counts = ", ".join(f"{len(x)} {name}" for name, x in sizes.items())
        raise ConfigError(f"prompts, max_tokens, samplings, seeds: must be equally many and at least one, got {counts}")
    prompts = [checked_prompt(ids) for ids in prompts]
    for ids, most in zip(prompts, max_tokens, strict=True):
        check_count("max_tokens", most)
        if limit is not None and len(ids) + most > limit:
            raise PromptTooLong(f"prompt: {len(ids)} tokens and {most} to make pass the model's limit of {limit}")
    stops = {*model.config.tokens.eos, *ends}
    made = [Made([]) for _ in prompts]
    generators = [seeded(seed) for seed in seeds]
    flat = prompt_tokens(model, [t for ids in prompts for t in ids])
    segments = Segments.from_lengths([len(ids) for ids in prompts])
    longest = max(len(p) + m for p, m in zip(prompts, max_tokens, strict=True))
    with memory_for(len(prompts) * longest):
        state = model.empty_state(len(prompts), longest)
        logits, state = model(flat, segments, state, last_only=True)
        live = list(range(len(prompts)))  # which prompt each row of the state belongs to
        decoder = Decoder(model, state)
        while True:
            drawn = [int(samplings[row].draw(logits[place], generators[row])) for place, row in enumerate(live)]
            going = []
            for place, (row, token) in enumerate(zip(live, drawn, strict=True)):
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
                live, drawn = [live[p] for p in going], [drawn[p] for p in going]
                decoder = Decoder(model, decoder.state.select(going))
            logits = decoder.step(torch.tensor(drawn, device=model.device))


def row_done(made: Made, most: int) -> bool:
    """Whether nothing more is made of a row."""
    return made.ended or len(made.ids) >= most
