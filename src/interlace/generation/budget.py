"""How much memory an engine may use, and what fits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from interlace.base.errors import ConfigError
from interlace.model.memory import prefill_memory
from interlace.model.model import HybridLM
from interlace.model.sizes import sizes

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_bytes(name: str, value: Any) -> int:
    """Return a number of bytes that is given as one, or as "8GB" or "512MiB".

    Raises:
        ConfigError: it is neither; the message names `name`.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B|)\s*", value.upper()) if isinstance(value, str) else None
    if found is None or not (count := int(float(found[1]) * UNITS[found[2]])):
        raise ConfigError(f"{name}: must be a size such as '8GB' or '512MiB', got {value!r}")
    return count


@dataclass(frozen=True)
class Budget:
    """The memory of an engine, in bytes.

    Attributes:
        weights: of the model.
        working: activations of one part of a prompt, at most, and what kernels and library keep.
        states: what sequences and snapshots may take together.
        kept: the most that snapshots may take of it.
        fixed: the recurrent state of one sequence, and its last logits.
        rows: the most sequences at a time.
    """

    weights: int
    working: int
    states: int
    kept: int
    fixed: int
    rows: int

    @staticmethod
    def of(model: HybridLM, memory: int, rows: int, part_tokens: int) -> Budget:
        """Divide memory: what weights and working memory leave is for states.

        Args:
            memory: bytes, the weights included.
            rows: the most sequences at a time; fewer where their recurrent states would take over half of the rest.
            part_tokens: the most prompt tokens that are read at a time.

        Raises:
            ConfigError: nothing is left for a single sequence.
        """
        need = prefill_memory(model.config, part_tokens, part_tokens, model.dtype)
        weights = model.weights_bytes
        working = need.working + need.kept
        left = memory - weights - working
        element = model.dtype.itemsize
        fixed = sizes(model.config, (1,), element).state_bytes[1] + 4 * model.config.vocabulary
        if left < 2 * fixed:
            raise ConfigError(
                f"memory: {memory:,} bytes hold no sequence; weights take {weights:,}, reading a prompt {working:,}, "
                f"and one sequence {fixed:,}; give at least {weights + working + 2 * fixed:,}"
            )
        return Budget(weights, working, left, left, fixed, max(1, min(rows, left // (2 * fixed))))

    @staticmethod
    def unlimited(rows: int, kept: int = 0) -> Budget:
        """Return the budget of a caller who knows that so many rows fit; kept: bytes, for snapshots."""
        return Budget(0, 0, 1 << 60, kept, 0, rows)


def sequence_bytes(model: HybridLM, tokens: int) -> int:
    """Return the bytes of the state of one sequence that may come to so many tokens, caches included."""
    element = model.dtype.itemsize
    found = sizes(model.config, (tokens,), element)
    return found.state_bytes[tokens] + found.cache_bytes[tokens] + 4 * model.config.vocabulary
