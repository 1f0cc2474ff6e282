"""The text of a run as tokens: prepared once, stored beside what reads it, and never taken for another's."""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import read_json, sha256, user_path
from interlace.checkpoint.folder import resolve
from interlace.checkpoint.load import describe
from interlace.data.batches import Batches, Packs, batches
from interlace.data.chat import read_template
from interlace.data.mixture import Ingredient, Mixture, joined
from interlace.data.prepare import MADE_FOR, MANIFEST, Chat, new_entries, prepare
from interlace.data.sources import Sources, is_hub
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.runs.progress import Watch, silent
from interlace.train.cache.teacher import check_cache
from interlace.train.recipe import DataSettings, Recipe
from interlace.train.schedule import horizon_steps
from interlace.train.teacher import check_teacher
from interlace.train.trained import laid_out_model

LOG = logging.getLogger("interlace")


def open_corpus(
    data: DataSettings,
    cache: Path,
    watch: Watch = silent,
    begun: bool = False,
    text: Sources | None = None,
) -> Corpus:
    """The prepared folder that a recipe names, or one made from its text in `cache` and kept there, its files checked.

    Args:
        begun: whether steps were taken with what is in `cache`, which is then not made anew.
        text: read in the place of data.source.

    Raises:
        DataError: the text cannot be used, a file is damaged, or `cache` holds what was prepared for something else.
    """
    if data.mixture:
        return _mixed(data, cache, lambda one, name: open_corpus(one, cache / name, watch, begun))
    folder = None if text is not None else prepared_folder(data)
    if folder is not None:
        corpus = Corpus.open(folder)
        corpus.verify()
        return corpus
    read = text or sources_of(data)

    def make(made_for: dict[str, Any]) -> None:
        chat = Chat(read_template(data.template) if data.template else None, data.turns)
        share = data.held_out
        prepare(read, data.tokenizer, cache, held_out_share=share, chat=chat, watch=watch, made_for=made_for, held=True)

    return kept_corpus(cache, lambda: _made_for(data, read), make, begun)


def again(data: DataSettings, cache: Path) -> Corpus:
    """Open what `open_corpus` returned, by this worker or another, without looking at every byte once more."""
    if data.mixture:
        return _mixed(data, cache, lambda one, name: again(one, cache / name))
    return Corpus.open(prepared_folder(data) or cache)


def _mixed(data: DataSettings, cache: Path, open_one: Callable[[DataSettings, str], Corpus]) -> Corpus:
    """Return the sources of a mixture as one corpus.

    Raises:
        ConfigError: they have different tokenizers.
    """
    parts = []
    for name, one in data.mixture.items():
        settings = data.model_copy(update={"source": one.source, "mixture": {}})
        if prepared_folder(settings) is None and new_entries(data.tokenizer) is not None:
            raise ConfigError(
                f"data.mixture.{name}: its text needs a tokenizer that all sources share; name a tokenizer.json as "
                "data.tokenizer, or prepare the text with `interlace data prepare`"
            )
        parts.append((name, open_one(settings, name)))
    first = parts[0][1]
    for name, corpus in parts:
        if corpus.tokenizer.hash() != first.tokenizer.hash():
            raise ConfigError(
                f"data.mixture.{name}: was prepared with another tokenizer than {parts[0][0]}; prepare both with one"
            )
    splits = {"held_out": joined([corpus.splits["held_out"] for _, corpus in parts])}
    known = {name: corpus.fingerprint() for name, corpus in parts}
    manifest = {"dtype": first.manifest["dtype"], "tokenizer": first.manifest["tokenizer"], "splits": known}
    return Corpus(cache, manifest, first.tokenizer, splits, tuple(parts))


def batches_of(data: DataSettings, corpus: Corpus, seed: int) -> Batches | Packs | Mixture:
    """Return the batches of a recipe.

    Raises:
        DataError: a source has too little text.
    """
    if not corpus.parts:
        split = corpus.splits["train"]
        return batches(split, data.rows, data.length, seed, data.packing, data.long)
    wanted = data.mixture
    found = [Ingredient(n, c.splits["train"], wanted[n].weight, wanted[n].epochs) for n, c in corpus.parts]
    return Mixture(found, data.rows, data.length, seed)


def check_mixture(read: Batches | Packs | Mixture, steps: int) -> None:
    """Say which sources of a mixture end before the run does.

    Raises:
        DataError: all of them do.
    """
    if not isinstance(read, Mixture):
        return
    if read.steps < steps:
        raise DataError(
            f"data.mixture: all sources end after {read.steps:,} steps of {steps:,}; give more text, more epochs, or "
            "lower train.tokens"
        )
    for name, step in read.ends(steps):
        LOG.warning(
            "data.mixture.%s: ends by step %s of %s, when its epochs are read; its weight then goes to the others",
            name,
            f"{step:,}",
            f"{steps:,}",
        )


def kept_corpus(
    cache: Path, made_for: Callable[[], dict[str, Any]], make: Callable[[dict[str, Any]], None], begun: bool
) -> Corpus:
    """Return the corpus in `cache`, its files checked.

    It is made anew if it was made for something else and nothing has begun.

    Args:
        made_for: what the tokens depend on; see `stamp` for the text.
        make: prepares `cache` for that.

    Raises:
        DataError: `cache` was prepared by hand, or a file is damaged.
    """
    manifest = cache / MANIFEST
    if not (begun and manifest.is_file()):
        wanted = made_for()
        if manifest.is_file():
            known = read_json(manifest, "the manifest of a prepared folder")
            known = known.get(MADE_FOR) if isinstance(known, dict) else None
            if known is None:
                raise DataError(f"{cache}: was not prepared for this run; name it as the run's data, or remove it")
            if known != wanted:
                shutil.rmtree(cache)
        if not manifest.is_file():
            make(wanted)
    corpus = Corpus.open(cache)
    corpus.verify()
    return corpus


def stamp(text: Sources) -> str:
    """Return a hash of the paths, sizes and times of a text's files, which changes when the text does."""
    digest = hashlib.sha256()
    for path in text.every_file():
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sources_of(data: DataSettings) -> Sources:
    """Return the text that a recipe names."""
    return Sources([p if is_hub(p) else user_path(p) for p in data.source], data.field, kind=data.kind)


def prepared_folder(data: DataSettings) -> Path | None:
    """Return the prepared folder that a recipe names; None if it names text."""
    paths = [user_path(p) for p in data.source]
    return paths[0] if len(paths) == 1 and (paths[0] / MANIFEST).is_file() else None


def _made_for(data: DataSettings, text: Sources) -> dict[str, Any]:
    """Return what text prepared from a recipe depends on."""
    settings = data.model_dump(mode="json", include={"source", "field", "turns", "tokenizer", "held_out"})
    settings |= {} if data.kind == "auto" else {"kind": data.kind}  # which folders from before it do not name
    files = {"template": data.template, "tokenizer": "" if new_entries(data.tokenizer) is not None else data.tokenizer}
    hashes = {f"{name}_sha256": sha256(user_path(path)) for name, path in files.items() if path}
    return {**settings, **hashes, "text": stamp(text)}


def check_inputs(recipe: Recipe, text: Sources | None = None, later: bool = False) -> None:
    """Check whether a run could begin, before anything is written.

    Args:
        text: read in the place of data.source.
        later: whether it is a stage whose checkpoint and tokenizer may be those of a stage before.

    Raises:
        DataError, ConfigError, CheckpointError: a source, the tokenizer, the template or the checkpoint to start from
            is missing or cannot be used, or a prepared folder does not fit.
    """
    data = recipe.data
    _check_length(recipe)
    _check_steps(recipe)
    if data.template:
        read_template(data.template)
    if recipe.train.start and not later:
        describe(resolve(recipe.train.start, weights=False))
    if recipe.objective.reference:
        describe(resolve(recipe.objective.reference, weights=False))
    check_teacher(recipe)
    check_cache(recipe)
    laid_out_model(recipe.model, recipe.train)  # which names a layer to adapt that is not there
    if data.mixture:
        prepared = 0
        for name, one in data.mixture.items():
            settings = data.model_copy(update={"source": one.source, "mixture": {}})
            try:
                if folder := prepared_folder(settings):
                    check_fit(recipe, Corpus.open(folder))
                    prepared += 1
                else:
                    next(iter(sources_of(settings)))
            except DataError as error:
                raise DataError(f"data.mixture.{name}: {error}") from None
        if prepared == len(data.mixture):
            corpus = again(data, Path())
            check_mixture(batches_of(data, corpus, recipe.train.seed), steps_of(recipe))
        return
    folder = None if text is not None else prepared_folder(data)
    if folder is not None:
        corpus = Corpus.open(folder)
        check_fit(recipe, corpus)
        batches_of(data, corpus, recipe.train.seed)
        return
    if text is None:
        for path in data.source:
            first = next(iter(sources_of(data.model_copy(update={"source": (path,)}))))
            check_kind(recipe, first.kind)
    if not later or new_entries(data.tokenizer) is not None or user_path(data.tokenizer).is_file():
        _check_vocabulary(recipe, _entries(data.tokenizer))


def steps_of(recipe: Recipe) -> int:
    """Return how many whole batches hold the tokens asked for."""
    return -(-recipe.train.tokens // (recipe.data.rows * recipe.data.length))


def _check_steps(recipe: Recipe) -> None:
    """Raise ConfigError for horizons between which no step lies, and rows that cannot be computed in parts."""
    ends = horizon_steps(steps_of(recipe), recipe.train.horizons)
    if ends[0] < 1 or any(b <= a for a, b in itertools.pairwise(ends)):
        raise ConfigError(
            f"train.horizons: {list(recipe.train.horizons)} of {ends[-1]:,} steps fall on the steps {ends[:-1]}; they "
            "must be different ones, from 1"
        )
    rows, parts = recipe.data.rows, recipe.train.accumulate
    if recipe.data.packing == "rows" and rows % parts:
        raise ConfigError(f"train.accumulate: data.rows = {rows} cannot be computed in {parts} equal parts; change one")


def check_fit(recipe: Recipe, corpus: Corpus) -> None:
    """Raise ConfigError if the model cannot read this corpus' tokens."""
    _check_vocabulary(recipe, corpus.tokenizer.vocabulary)
    _check_length(recipe)
    check_kind(recipe, corpus.splits["train"].kind if not corpus.parts else "text")


def check_kind(recipe: Recipe, kind: str) -> None:
    """Raise ConfigError if a recipe's objective is not of this kind of documents.

    kind: "text", "conversation" or "pair".
    """
    objective = recipe.objective.kind
    if recipe.objective.of_pairs and kind != "pair":
        raise ConfigError(
            f'objective.kind: "{objective}" is of pairs of answers, but the data are {kind}s; give rows with chosen '
            'and rejected (where they have messages too, set data.kind = "pairs"), or leave [objective] out'
        )
    if not recipe.objective.of_pairs and kind == "pair":
        raise ConfigError(
            f'objective.kind: the data are pairs of answers, which "{objective}" does not learn; set it to "dpo", '
            '"dpo_norm", "ipo" or "simpo"; or data.kind = "conversations", where rows have messages too'
        )


def _entries(tokenizer: str) -> int:
    """Return how many ids a tokenizer has, or may have if it is not learnt yet."""
    size = new_entries(tokenizer)
    return Tokenizer.from_file(user_path(tokenizer)).vocabulary if size is None else size


def _check_vocabulary(recipe: Recipe, entries: int) -> None:
    if entries > recipe.model.vocabulary:
        raise ConfigError(
            f"model.vocabulary: is {recipe.model.vocabulary}, but the tokenizer has {entries} ids; "
            "raise it, or use a smaller tokenizer"
        )


def _check_length(recipe: Recipe) -> None:
    limit = recipe.model.max_positions
    if limit is not None and recipe.data.length > limit:
        raise ConfigError(
            f"data.length: {recipe.data.length} is past the model's max_positions = {limit}; lower it, or raise "
            "model.max_positions"
        )
