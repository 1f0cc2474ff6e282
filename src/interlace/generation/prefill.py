"""Read prompts a bounded number of tokens at a time: short ones together, a long one in parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.model.model import HybridLM
from interlace.model.state import ModelState

PREFILL = 4096  # prompt tokens read at a time, of all sequences together, which bounds memory


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
