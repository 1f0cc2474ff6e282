"""Generate text with a model, in pieces as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from interlace.base.errors import ConfigError
from interlace.checkpoint.folder import GENERATION
from interlace.generation.batch import pieces_of
from interlace.generation.prompts import checked_prompt, encoded, fresh_seed
from interlace.generation.request import Piece, Request
from interlace.generation.sampling import Sampling
from interlace.generation.stops import checked_stops
from interlace.model.model import HybridLM


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
    """Yield pieces of text as they come, until the model ends the text, a stop string appears, or max_tokens are made.

    Args:
        model: with a tokenizer.
        prompt: text to continue; not repeated in the output.
        max_tokens: the most to make.
        temperature, top_k, top_p, min_p: see `Sampling`. None takes what the model's release recommends in
            generation_config.json, or else the default of `Sampling`. top_k = 0 keeps all tokens.
        seed: the seed of the draws; None for a fresh one.
        stop: strings that end the text, special tokens among them; they are not part of it.

    Raises:
        PromptTooLong: prompt and max_tokens do not fit the model's limit.
        ConfigError: the model has no tokenizer, or a setting is out of range.
    """
    if model.tokenizer is None:
        raise ConfigError("model: has no tokenizer; generate from token ids with `generate_tokens`")
    ids = encoded(model, prompt)
    sampling, _ = recommended(model, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    request = Request(tuple(ids), max_tokens, sampling, seed=fresh_seed(seed), stop=checked_stops(stop))
    return Pieces(pieces_of(model, request))


class Pieces(Iterator[str]):
    """An iterator over pieces of text as they come.

    Attributes:
        tokens: how many were made so far.
    """

    def __init__(self, pieces: Iterator[Piece]):
        """pieces: of one answer, made when they are asked for."""
        self.tokens = 0
        self._pieces = pieces

    def __next__(self) -> str:
        """Return the next piece that holds text."""
        for piece in self._pieces:
            self.tokens += piece.token is not None
            if piece.text:
                return piece.text
        raise StopIteration


def recommended(model: HybridLM, **given: Any) -> tuple[Sampling, dict[str, Any]]:
    """Return (the sampling to use, the settings that the release recommended and that are used).

    A given setting comes first, then generation_config.json, then the default.

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


def generate_tokens(
    model: HybridLM,
    ids: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int | None = None,
) -> Iterator[int]:
    """Yield token ids as they come; end before an end-of-text token, which is not yielded.

    Caches are allocated once, for the prompt and max_tokens, so memory is what `interlace inspect` predicts.

    Raises:
        PromptTooLong: prompt and max_tokens do not fit the model's limit.
        ConfigError: max_tokens, seed or ids are not what they must be. ShapeError: an id is outside the vocabulary.
        Failure: while they are made: memory does not hold the state.
    """
    request = Request(tuple(checked_prompt(ids)), max_tokens, sampling or Sampling(), seed=fresh_seed(seed), text=False)
    return (piece.token for piece in pieces_of(model, request) if piece.token is not None)
