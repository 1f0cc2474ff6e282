"""The description of a published family: its config translated both ways, and a map of its tensor names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from interlace.model.config import ModelConfig


@dataclass(frozen=True)
class Slot:
    """The place of a published tensor: rows [first, end) of one of our parameters (None: all of it).

    A parameter's rows are all its axes but the last. `shape` is that of the published tensor where it differs, as for
    nn.Conv1d's weights with their axis of size 1.
    """

    name: str
    rows: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None


_UNREAD = re.compile(  # in any family: what old conversions stored, and scales of activations and of an 8-bit KV cache
    r"rotary_emb\.inv_freq$|\.(input_scale|output_scale|[qkv]_scale|[kv]_zero_point|prob_output_scale)$"
)
Slots = dict[str, tuple[Slot, ...]]  # a published tensor is one slot, or several one above the other


@dataclass(frozen=True)
class Family:
    """One published family.

    Attributes:
        model_type: the `model_type` of its config.json.
        architecture: the class that `transformers` opens it with.
        read_config: its config.json to ours.
        write_config: ours to its config.json, or None if the family cannot express this model.
        slots: published name to slots, for saving and loading.
        aliases: other names and cuts seen in the wild to slots, for loading only; given the stored shapes by name.
        optional: published names that may be there and are not needed.
        kept: pattern of tensors that the model does not use, carried along and saved back (multi-token prediction).
        kept_keys: keys of config.json that belong to them.
        ignored: pattern of tensors that belong to another model in the same file (a vision tower).
        also: other `model_type`s that hold such a model.
        renames: (pattern, replacement) of released names that `transformers` gives otherwise to its modules.
        experts: path of a layer's experts inside `transformers`, with {} for the layer; "" where ours are stored so.
        peft_fuses: pattern of the modules that `peft` takes for experts of this family, wherever they stand.
        text: the part of config.json that describes the text model; all of it unless the family says otherwise.
    """

    model_type: str
    architecture: str | None
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any] | None]
    slots: Callable[[ModelConfig], Slots]
    aliases: Callable[[ModelConfig, Mapping[str, tuple[int, ...]]], Slots] = field(default=lambda *_: {})
    optional: Callable[[ModelConfig], set[str]] = field(default=lambda _: set())
    kept: str | None = None
    kept_keys: tuple[str, ...] = ()
    ignored: str | None = None
    also: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    experts: str = ""
    peft_fuses: str | None = None
    text: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda config: config)

    def inside(self, name: str) -> str:
        """Return the name that a released tensor has inside `transformers`."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def keeps(self, name: str) -> bool:
        """Return whether a tensor is not used and is carried along."""
        return self.kept is not None and re.match(self.kept, name) is not None

    def ignores(self, name: str) -> bool:
        """Return whether a tensor belongs to another model, or only serves other engines."""
        if _UNREAD.search(name):
            return True
        return self.ignored is not None and re.match(self.ignored, name) is not None

    def loaded(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the stored tensors that are not carried along and belong to no other model."""
        return {name: x for name, x in names.items() if not (self.keeps(name) or self.ignores(name))}
