"""The cache of a run that distils, checked before anything is trained."""

from __future__ import annotations

import torch

from interlace.base.errors import ConfigError
from interlace.base.files import user_path
from interlace.data.tokens import Corpus
from interlace.runs.training import TrainingRun
from interlace.train.cache.cache import Cache, Cached
from interlace.train.recipe import Recipe


def check_cache(recipe: Recipe) -> None:
    """Check whether a recipe's cache is whole and serves its objective, where it has one.

    Raises:
        DataError: it is missing, damaged or not whole. ConfigError: it is not of this divergence or temperature.
    """
    if not recipe.objective.cache:
        return
    asked, records = recipe.objective, Cache(user_path(recipe.objective.cache)).facts.records
    if recipe.data.mixture:
        raise ConfigError("objective.cache: is of one source, and data.mixture has several; name a teacher instead")
    if records.kind == "hidden":
        return
    if asked.hidden:
        raise ConfigError(
            f"objective.hidden: a cache of {records.kind} holds no hidden states; make one with --kind hidden, or name "
            "a teacher instead"
        )
    if asked.divergence != "forward_kl":
        raise ConfigError(
            f'objective.divergence: a cache of {records.kind} is of "forward_kl", not of "{asked.divergence}"; keep '
            "hidden states, or name a teacher instead"
        )
    if asked.temperature != records.temperature:
        raise ConfigError(
            f"objective.temperature: the cache was made at {records.temperature:g}, and {asked.temperature:g} is asked "
            f"for; set it to {records.temperature:g}, or make a cache at {asked.temperature:g}"
        )


def cached_teacher(recipe: Recipe, run: TrainingRun, corpus: Corpus, precision: str, device: str) -> Cached:
    """Return a recipe's cache as its teacher.

    Raises:
        RunError: it is another cache than the run began with. ConfigError: it is of other data, or another tokenizer.
    """
    asked = recipe.objective
    cache = Cache(user_path(asked.cache))
    cache.check(corpus)
    run.check("cache", cache.fingerprint(), f"objective.cache: {asked.cache}")
    whole = cache.facts.records.kind == "hidden"
    head = cache.head(device, getattr(torch, precision)) if whole else None
    return Cached(cache, corpus.splits["train"], head, asked.temperature, asked.divergence, asked.mixture)
