"""Check what is given before a token is made: prompts, numbers of tokens, seeds, and the model's limit and memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from interlace.base.errors import ConfigError, Failure, PromptTooLong, ShapeError
from interlace.model.model import HybridLM

MOST = 1 << 31  # tokens that may be asked for


def check_ids(model: HybridLM, ids: Sequence[int]) -> None:
    """Raise ConfigError for a token of the tokenizer for which the model has no row."""
    wrong = next((i for i in ids if not 0 <= i < model.config.vocabulary), None)
    if wrong is not None:
        name = None if model.tokenizer is None else model.tokenizer.fast.id_to_token(wrong)
        raise ConfigError(
            f"prompt: holds the token {name!r} (id {wrong}), but the model's vocabulary ends at "
            f"{model.config.vocabulary - 1}; leave it out"
        )


def encoded(model: HybridLM, prompt: str) -> list[int]:
    """Return the ids of a prompt, for a model with a tokenizer; an empty one begins with the end of a text.

    Raises:
        ConfigError: nothing is there to begin with, or the model has no row for a token.
    """
    tokenizer = model.tokenizer
    ids: list[int] = tokenizer.encode_text(prompt) or ([] if tokenizer.eos is None else [tokenizer.eos])
    if not ids:
        raise ConfigError("prompt: is empty, and the tokenizer has no end-of-text token to start from")
    check_ids(model, ids)
    return ids


def check_count(name: str, value: Any) -> None:
    """Raise ConfigError for a value that is no number of tokens."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MOST:
        raise ConfigError(f"{name}: must be an integer, at least 1 and below {MOST:,}, got {value!r}")


def check_fits(model: HybridLM, tokens: int, max_tokens: int, what: str = "prompt", remedy: str = "") -> None:
    """Raise PromptTooLong if `tokens` and those to be made pass the model's limit; `what` names them."""
    limit, total = model.config.max_positions, tokens + max_tokens
    if limit is not None and total > limit:
        raise PromptTooLong(
            f"{what}: {tokens} tokens and max_tokens = {max_tokens} make {total}, but the model's limit is {limit}; "
            f"{remedy or 'shorten the prompt or lower max_tokens'}"
        )


def checked_prompt(ids: Any) -> list[int]:
    """Return a prompt's ids as a list, or raise ConfigError; ids beyond the vocabulary are checked by the model."""
    try:
        if isinstance(ids, str) or (isinstance(ids, Tensor) and ids.ndim != 1):
            raise TypeError
        values = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    except TypeError:
        raise ConfigError(f"prompt: must be a list of token ids, got {ids!r:.80}") from None
    if not values:
        raise ConfigError("prompt: 0 tokens to go on from; it must hold at least 1")
    if any(isinstance(i, float | bool) for i in values):
        raise ShapeError(f"tokens: must be integer ids, got {values[:8]!r}")
    if any(not isinstance(i, Integral) for i in values):
        raise ConfigError(f"prompt: must be a list of token ids, got {ids!r:.80}")
    return values


def prompt_tokens(model: HybridLM, ids: Sequence[int]) -> Tensor:
    """Return the ids as int64 [len(ids)], on the model's device.

    Raises:
        ShapeError: an id is outside the vocabulary.
    """
    size = model.config.vocabulary
    if (wrong := next((i for i in ids if not 0 <= i < size), None)) is not None:
        raise ShapeError(f"tokens: must lie in [0, {size}), the model's vocabulary, got {wrong}")
    return torch.tensor(ids, device=model.device)


@contextmanager
def memory_for(positions: int) -> Iterator[None]:
    """Raise Failure, which names max_tokens, if memory does not hold the state of so many tokens."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # the CPU's allocator has no error of its own
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise Failure(
            f"max_tokens: memory does not hold the state of {positions:,} tokens, the prompt's included; lower it"
        ) from error


def fresh_seed(seed: int | None) -> int:
    """Return a seed that nobody has used, for None; else the seed."""
    return secrets.randbits(63) if seed is None else seed


def seeded(seed: int) -> torch.Generator:
    """Return a random generator with this seed.

    Raises:
        ConfigError: the seed is no integer from 0 below 2**64.
    """
    generator = torch.Generator()
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed: must be an integer from 0 below 2**64, got {seed!r}")
    return generator.manual_seed(int(seed) if seed < 1 << 63 else int(seed) - (1 << 64))
