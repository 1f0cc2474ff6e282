"""Prefill once, then one token at a time with carried state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from interlace.base.errors import ConfigError, Failure, PromptTooLong, ShapeError
from interlace.checkpoint.folder import GENERATION
from interlace.generation.capture import Decoder
from interlace.generation.sampling import Sampling
from interlace.generation.stops import Stops
from interlace.layers.projection import Projections
from interlace.model.model import HybridLM
from interlace.ops.core import kernels

MOST = 1 << 31  # tokens that may be asked for
PREFILL = 4096  # prompt tokens read at a time, which bounds memory


def generate(
    model: HybridLM,
    prompt: str,
    *,
    max_tokens: int = 256,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
) -> Pieces:
    """Pieces of text as they come, until the model ends the text, a stop string appears, or max_tokens are made.

    Args:
        model: with a tokenizer.
        prompt: text to go on from; not repeated in the output.
        max_tokens: the most to make.
        temperature, top_k, top_p, min_p: see `Sampling`; None for what the model's release recommends in
            generation_config.json, and where it does not, for the default of `Sampling`. top_k = 0 keeps all tokens.
        seed: of the draws; None for a fresh one.
        stop: strings that end the text, special tokens among them; they are not part of it.

    Raises:
        PromptTooLong: prompt and max_tokens do not fit the model's limit.
        ConfigError: the model has no tokenizer, or a setting is out of range.
    """
    if model.tokenizer is None:
        raise ConfigError("model: has no tokenizer; generate from token ids with `generate_tokens`")
    tokenizer = model.tokenizer
    ids = tokenizer.encode_text(prompt) or ([tokenizer.eos] if tokenizer.eos is not None else [])
    if not ids:
        raise ConfigError("prompt: is empty, and the tokenizer has no end-of-text token to start from")
    check_ids(model, ids)
    sampling, _ = recommended(model, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    stops = Stops(tokenizer, stop, after=ids)
    return Pieces(stops, generate_tokens(model, ids, max_tokens=max_tokens, sampling=sampling, seed=seed))


class Pieces(Iterator[str]):
    """Pieces of text as they come.

    Attributes:
        tokens: how many were made so far.
    """

    def __init__(self, stops: Stops, ids: Iterator[int]):
        """ids: of the text, made when they are asked for."""
        self.tokens = 0
        self._pieces = stops.cut(self._counted(ids))

    def _counted(self, ids: Iterator[int]) -> Iterator[int]:
        for token in ids:
            self.tokens += 1
            yield token

    def __next__(self) -> str:
        """The next piece."""
        return next(self._pieces)


def check_ids(model: HybridLM, ids: Sequence[int]) -> None:
    """Raise ConfigError for a token of the model's tokenizer that the model has no row for."""
    wrong = next((i for i in ids if not 0 <= i < model.config.vocabulary), None)
    if wrong is not None:
        name = None if model.tokenizer is None else model.tokenizer.fast.id_to_token(wrong)
        raise ConfigError(
            f"prompt: holds the token {name!r} (id {wrong}), but the model's vocabulary ends at "
            f"{model.config.vocabulary - 1}; leave it out"
        )


def recommended(model: HybridLM, **given: Any) -> tuple[Sampling, dict[str, Any]]:
    """How to draw: what is given, else what generation_config.json says, else the defaults; and what was taken of it.

    Args:
        given: temperature, top_k, top_p, min_p; None where nothing is given.

    Raises:
        ConfigError: a setting is out of range.
    """
    release = {} if model.source is None else model.source.generation
    if release.get("do_sample") is True:
        said = {key: release[key] for key in given if release.get(key) is not None}
    else:
        said = {"temperature": 0.0} if release.get("do_sample") is False else {}
    taken = {key: value for key, value in said.items() if given.get(key) is None}
    chosen = {**taken, **{key: value for key, value in given.items() if value is not None}}
    if chosen.get("top_k") == 0:  # as transformers switches it off
        chosen["top_k"] = None
    try:
        return Sampling(**chosen), taken
    except ConfigError as error:
        field = str(error).partition(":")[0]
        if field in taken:
            raise ConfigError(f"{GENERATION}: {error}; correct it, or give {field}") from None
        raise


def lay_out_for_decoding(model: HybridLM, int8: bool = False) -> HybridLM:
    """Lay a model's matrices out for one-row products, which read every weight once per token. It will only generate.

    Layers that read the same input become one product. Where there are no native kernels, float32 matrices are stored
    column by column instead, which the library reads 1.3 times faster on a CPU. Values stay the same.

    Args:
        model: changed in place; an optimizer made before would still hold the old layout.
        int8: round each output's weights to 255 steps, which halves what bfloat16 reads. The model then cannot be
            trained or saved.
    """
    on_cpu = model.device.type == "cpu"
    for module in model.modules():
        if isinstance(module, Projections) and (int8 or (on_cpu and kernels.available())):
            module.pack(int8)
        elif isinstance(module, nn.Linear) and on_cpu and not kernels.available():
            weight: Tensor = module.weight
            if weight.dtype == torch.float32 and weight.numel():
                weight.data = weight.data.t().contiguous().t()
    if int8:
        model.pack_head()
    return model


def generate_tokens(
    model: HybridLM,
    ids: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int | None = None,
) -> Iterator[int]:
    """Token ids as they come; ends before an end-of-text token, which is not yielded.

    Caches are allocated once, for the prompt and max_tokens, so memory is what `interlace inspect` predicts.

    Raises:
        PromptTooLong: prompt and max_tokens do not fit the model's limit.
        ConfigError: max_tokens, seed or ids are not what they must be. ShapeError: an id is outside the vocabulary.
        Failure: while they are made: memory does not hold the state.
    """
    check_count("max_tokens", max_tokens)
    ids = checked_prompt(ids)
    generator = seeded(seed)
    limit, total = model.config.max_positions, len(ids) + max_tokens
    if limit is not None and total > limit:
        raise PromptTooLong(
            f"prompt: {len(ids)} tokens and max_tokens = {max_tokens} make {total}, but the model's limit is {limit}; "
            "shorten the prompt or lower max_tokens"
        )
    tokens = prompt_tokens(model, ids)
    return _tokens(model, tokens, max_tokens, sampling or Sampling(), generator)


def check_count(name: str, value: Any) -> None:
    """Raise ConfigError for what is no number of tokens."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MOST:
        raise ConfigError(f"{name}: must be an integer, at least 1 and below {MOST:,}, got {value!r}")


def checked_prompt(ids: Any) -> list[int]:
    """A prompt's ids as a list, or ConfigError; what a model's vocabulary lacks is the model's to say."""
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
    """int64 [len(ids)], on the model's device.

    Raises:
        ShapeError: an id is outside the vocabulary.
    """
    size = model.config.vocabulary
    if (wrong := next((i for i in ids if not 0 <= i < size), None)) is not None:
        raise ShapeError(f"tokens: must lie in [0, {size}), the model's vocabulary, got {wrong}")
    return torch.tensor(ids, device=model.device)


@contextmanager
def memory_for(positions: int) -> Iterator[None]:
    """Raise Failure, which names max_tokens, where memory does not hold the state of so many tokens."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # the CPU's allocator has no error of its own
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise Failure(
            f"max_tokens: memory does not hold the state of {positions:,} tokens, the prompt's included; lower it"
        ) from error


def seeded(seed: int | None) -> torch.Generator:
    """A generator of draws, fresh for None.

    Raises:
        ConfigError: the seed is no integer from 0 below 2**64.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed: must be an integer from 0 below 2**64, got {seed!r}")
    return generator.manual_seed(int(seed) if seed < 1 << 63 else int(seed) - (1 << 64))


def _tokens(
    model: HybridLM, ids: Tensor, max_tokens: int, sampling: Sampling, generator: torch.Generator
) -> Iterator[int]:
    with memory_for(ids.shape[0] + max_tokens):
        state = model.empty_state(1, ids.shape[0] + max_tokens)
        with torch.inference_mode():
            for part in ids.split(PREFILL):
                logits, state = model(part, state=state, last_only=True)
        decoder = Decoder(model, state)
        for made in range(1, max_tokens + 1):
            token = int(sampling.draw(logits[0], generator))
            if token in model.config.tokens.eos:
                return
            yield token
            if made < max_tokens:
                logits = decoder.step(torch.tensor([token], device=ids.device))
