"""The teacher of a run that distils: read, and compared with what the student reads, before anything is trained."""

from __future__ import annotations

import logging

import torch

from interlace.base.errors import ConfigError
from interlace.checkpoint.fingerprint import fingerprint
from interlace.checkpoint.folder import resolve
from interlace.checkpoint.load import describe, load
from interlace.data.tokens import Corpus
from interlace.model.config import ModelConfig
from interlace.model.memory import prefill_memory
from interlace.model.model import HybridLM
from interlace.model.sizes import sizes
from interlace.runs.training import TrainingRun
from interlace.train.objectives.distill import Live
from interlace.train.recipe import Recipe

LOG = logging.getLogger(__name__)


def check_teacher(recipe: Recipe) -> None:
    """Check whether a recipe's teacher can be read, where it has one.

    Raises:
        CheckpointError: it is missing or damaged. ConfigError: it reads fewer tokens than a row has.
    """
    if not recipe.objective.teacher:
        return
    config = _config(recipe.objective.teacher)
    if config.max_positions is not None and config.max_positions < recipe.data.length:
        raise ConfigError(
            f"objective.teacher: reads at most {config.max_positions:,} tokens, and data.length is "
            f"{recipe.data.length:,}; lower data.length, or name another teacher"
        )


def _config(name: str) -> ModelConfig:
    return describe(resolve(name, weights=False))[1]


def teacher_bytes(name: str, tokens: int, element_bytes: int) -> int:
    """Return the bytes of a teacher's weights, and of what it computes a batch of so many tokens in.

    name: its checkpoint; "" for none.
    """
    if not name:
        return 0
    dtype = torch.float32 if element_bytes == 4 else torch.bfloat16
    need = prefill_memory(_config(name), tokens, tokens, dtype)
    return need.weights + need.working


def teacher_flops_per_token(name: str, length: int) -> float:
    """Return what a teacher computes for each token of rows of this length; 0 without one."""
    return sizes(_config(name), (length,)).training_flops_per_token[length] / 3 if name else 0.0


def live_teacher(recipe: Recipe, run: TrainingRun, corpus: Corpus, precision: str, device: str) -> Live:
    """Return a recipe's teacher.

    Raises:
        RunError: it is another checkpoint than the run began with. ConfigError: it has another tokenizer.
    """
    settings, name = recipe.objective, f"objective.teacher: {recipe.objective.teacher}"
    known = fingerprint(settings.teacher)
    run.check("teacher", known, name)
    model = load(settings.teacher, dtype=getattr(torch, precision), device=device).eval().requires_grad_(False)
    if settings.align == "tokens":
        check_tokens(model, corpus, name)
    elif model.tokenizer is None:
        raise ConfigError(f"{name}: has no tokenizer, so that no text can be aligned; set objective.align to tokens")
    elif corpus.splits["train"].learnt is not None:
        raise ConfigError('objective.align: "text" is of texts, and the data are conversations; set it to tokens')
    if recipe.train.start and known == fingerprint(recipe.train.start):
        LOG.warning("%s: is the checkpoint that training starts from; there is nothing to learn from it at first", name)
    return Live(model, precision, settings.temperature, settings.divergence, settings.mixture)


def check_tokens(model: HybridLM, corpus: Corpus, name: str) -> None:
    """Raise ConfigError for a teacher, which messages call `name`, whose tokens are not those of the data."""
    tokens = corpus.tokenizer.vocabulary
    if model.tokenizer is not None and model.tokenizer.hash() != corpus.tokenizer.hash():
        raise ConfigError(
            f"{name}: has another tokenizer than the data, so that its probabilities are of other tokens; name a "
            "teacher with the same tokenizer, prepare the data with the teacher's (data.tokenizer), or compare spans "
            'of text (objective.align = "text")'
        )
    if model.config.vocabulary < tokens:
        raise ConfigError(
            f"{name}: has {model.config.vocabulary:,} tokens, and the tokenizer {tokens:,}; name a teacher that was "
            "trained with it"
        )
