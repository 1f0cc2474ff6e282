"""Generate for many prompts at once; each row is drawn as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence

from interlace.base.errors import ConfigError
from interlace.generation.decode import Continuation, decode
from interlace.generation.prompts import check_count, check_fits, checked_prompt, prompt_tokens, seeded
from interlace.generation.sampling import Sampling
from interlace.model.model import HybridLM


def generate_batch(
    model: HybridLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    samplings: Sequence[Sampling],
    seeds: Sequence[int],
    ends: Sequence[int] = (),
) -> list[Continuation]:
    """Continue every prompt until it ends or has its max_tokens; each is drawn from its own seed.

    Args:
        ends: tokens that end a text beside the model's own.

    Returns:
        For each prompt, in order, a row that says what was `made`, and whether it `ended`.

    Raises:
        PromptTooLong: a prompt and its max_tokens pass the model's limit. ConfigError: one is empty, or they are not
            equally many.
    """
    sizes = {"prompts": prompts, "max_tokens": max_tokens, "samplings": samplings, "seeds": seeds}
    if len({len(x) for x in sizes.values()}) > 1 or not prompts:
        counts = ", ".join(f"{len(x)} {name}" for name, x in sizes.items())
        raise ConfigError(f"prompts, max_tokens, samplings, seeds: must be equally many and at least one, got {counts}")
    rows = []
    for given, most, sampling, seed in zip(prompts, max_tokens, samplings, seeds, strict=True):
        ids = checked_prompt(given)
        check_count("max_tokens", most)
        check_fits(model, len(ids), most)
        rows.append(Continuation(prompt_tokens(model, ids), most, sampling, seeded(seed)))
    for _ in decode(model, rows, ends):
        pass
    return rows
