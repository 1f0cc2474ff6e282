"""Write answers to many prompts at once, until each ends or a stop string appears."""

from __future__ import annotations

from collections.abc import Sequence

from interlace.generation.batch import answers
from interlace.generation.request import Answer, Request
from interlace.generation.sampling import Sampling
from interlace.generation.stops import checked_stops
from interlace.model.model import HybridLM


def write_answers(
    model: HybridLM,
    prompts: Sequence[Sequence[int]],
    max_tokens: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int],
    stops: Sequence[Sequence[str]],
    ends: Sequence[int] = (),
    begin_afresh: bool = False,
) -> list[Answer]:
    """Answer every prompt; each answer is drawn from its own seed, as if it were alone.

    Args:
        stops: of each prompt, the strings that end its answer.
        ends: tokens that end an answer beside the model's own.
        begin_afresh: whether answers are texts by themselves; see `Request.afresh`.

    Raises:
        PromptTooLong: a prompt and its max_tokens pass the model's limit.
    """
    requests = [
        Request(tuple(ids), most, sampling, seed=seed, ends=tuple(ends), stop=checked_stops(some), afresh=begin_afresh)
        for ids, most, seed, some in zip(prompts, max_tokens, seeds, stops, strict=True)
    ]
    return answers(model, requests)
