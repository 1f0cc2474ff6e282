"""The text of a run as tokens: prepared once, stored beside what reads it, and never taken for another's."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlace.base.errors import ConfigError, DataError
from interlace.base.files import read_json, sha256, user_path
from interlace.checkpoint.folder import resolve
from interlace.checkpoint.load import describe
from interlace.data.batches import batches
from interlace.data.chat import read_template
from interlace.data.prepare import MADE_FOR, MANIFEST, Chat, new_entries, prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.runs.progress import Watch, silent
from interlace.train.recipe import DataSettings, Recipe


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
    for source in text.paths:
        for path in (p for p, _ in text.files(source.resolve()) if p.is_file()):  # a missing one is refused when read
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sources_of(data: DataSettings) -> Sources:
    """Return the text that a recipe names."""
    return Sources([user_path(p) for p in data.source], data.field)


def prepared_folder(data: DataSettings) -> Path | None:
    """Return the prepared folder that a recipe names; None if it names text."""
    paths = [user_path(p) for p in data.source]
    return paths[0] if len(paths) == 1 and (paths[0] / MANIFEST).is_file() else None


def _made_for(data: DataSettings, text: Sources) -> dict[str, Any]:
    """Return what text prepared from a recipe depends on."""
    settings = data.model_dump(mode="json", include={"source", "field", "turns", "tokenizer", "held_out"})
    files = {"template": data.template, "tokenizer": "" if new_entries(data.tokenizer) is not None else data.tokenizer}
    hashes = {f"{name}_sha256": sha256(user_path(path)) for name, path in files.items() if path}
    return {**settings, **hashes, "text": stamp(text)}


def check_inputs(recipe: Recipe, text: Sources | None = None) -> None:
    """Check whether a run could begin, before anything is written.

    Args:
        text: read in the place of data.source.

    Raises:
        DataError, ConfigError, CheckpointError: a source, the tokenizer, the template or the checkpoint to start from
            is missing or cannot be used, or a prepared folder does not fit.
    """
    data = recipe.data
    _check_length(recipe)
    if data.template:
        read_template(data.template)
    if recipe.train.start:
        describe(resolve(recipe.train.start, weights=False))
    folder = None if text is not None else prepared_folder(data)
    if folder is not None:
        corpus = Corpus.open(folder)
        check_fit(recipe, corpus)
        batches(corpus.splits["train"], data.rows, data.length, recipe.train.seed)
        return
    if text is None:
        for path in data.source:
            next(iter(Sources([user_path(path)], data.field)))
    _check_vocabulary(recipe, _entries(data.tokenizer))


def check_fit(recipe: Recipe, corpus: Corpus) -> None:
    """Raise ConfigError if the model cannot read this corpus' tokens."""
    _check_vocabulary(recipe, corpus.tokenizer.vocabulary)
    _check_length(recipe)


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
