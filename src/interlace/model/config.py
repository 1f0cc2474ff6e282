"""A hybrid model as data: a table of named layer kinds, and the pattern in which they repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from interlace.base.errors import nearest
from interlace.base.schema import Closed, sentence, validate
from interlace.layers.base import FeedForwardConfig, LayerConfig, MixerConfig
from interlace.layers.norm import NormStyle
from interlace.layers.registry import KINDS


class SpecialTokens(Closed):
    """Ids of tokens with a meaning; None for those that a model lacks.

    Attributes:
        bos: begins a text.
        eos: each of these ends a text.
        pad: fills rows in tools that pad; interlace never does.
    """

    bos: int | None = None
    eos: tuple[int, ...] = Field(default=(), strict=False)
    pad: int | None = None


class ModelConfig(Closed):
    """A hybrid language model.

    A table named like a kind of the registry describes that kind; a table of another name says its kind by
    `type`, so that one model may hold two sorts of attention:

        [model.sliding]
        type = "attention"
        window = 4096

    After each mixer comes the feed-forward layer that its `mlp` names, by default the table `mlp`. A pattern may also
    name a feed-forward table, as a layer that is nothing else.

    Attributes:
        width: size of the residual stream (D).
        depth: number of layers.
        vocabulary: number of token ids.
        pattern: names of layer tables, repeated over the depth.
        layers: the tables by name; None values are filled in, so configs that mean the same are equal.
        norm_eps: the eps of every RMSNorm but the recurrent mixers' own.
        zero_centred_norms: whether those norms' weights are stored as their difference from 1 (Qwen3-Next).
        embedding_multiplier, residual_multiplier: factors on the embedding, and on what each branch adds (Granite).
        logits_divisor: what logits are divided by (Granite's logits_scaling).
        float32_residual: whether the residual stream is float32 whatever the weights are (Mamba).
        tied_embeddings: whether the output head is the embedding.
        max_positions: the longest context the model is meant for; None for no limit.
        init_std: deviation of the normal distribution that matrices are drawn from.
        tokens: ids with a meaning.
    """

    width: int = Field(gt=0)
    depth: int = Field(gt=0, le=10_000)
    vocabulary: int = Field(gt=0)
    pattern: tuple[str, ...] = Field(min_length=1, strict=False)
    layers: dict[str, Any]
    norm_eps: float = Field(default=1e-6, gt=0)
    zero_centred_norms: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = Field(default=1.0, gt=0)
    float32_residual: bool = False
    tied_embeddings: bool = False
    max_positions: int | None = Field(default=None, gt=0)
    init_std: float = Field(default=0.02, gt=0)
    tokens: SpecialTokens = SpecialTokens()

    @model_validator(mode="before")
    @classmethod
    def _collect_layers(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "layers" in data:
            return data
        rest = {k: v for k, v in data.items() if k in cls.model_fields}
        tables = {k: v for k, v in data.items() if k not in rest}
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                raise ValueError(f"{name}: unknown key; {nearest(name, [*cls.model_fields, *KINDS])}")
        return {**rest, "layers": tables}

    @model_validator(mode="after")
    def _build_layers(self) -> ModelConfig:
        for name in self.pattern:
            if name not in self.layers:
                known = f"; {nearest(name, KINDS)}" if name not in KINDS else f"; add a table [model.{name}]"
                raise ValueError(f"pattern: no layer kind is called '{name}'{known}")
        for name, table in self.layers.items():
            if isinstance(table, LayerConfig):
                continue
            self.layers[name] = self._layer(name, dict(table))
        for name, layer in self.layers.items():
            after = self._mlp_name(layer)
            if after is not None and not isinstance(self.layers.get(after), FeedForwardConfig):
                kinds = [n for n, kind in KINDS.items() if issubclass(kind, FeedForwardConfig)]
                raise ValueError(
                    f"{name}.mlp: there is no table [model.{after}] of kind {' or '.join(kinds)}; add it, or set "
                    "mlp = false"
                )
            if after is not None and after not in self.pattern and self.layers[after].norm != "input":
                raise ValueError(f"{after}.norm: has no effect after a mixer, whose own norm counts; set {name}.norm")
        return self

    @staticmethod
    def _mlp_name(layer: LayerConfig) -> str | None:
        if not isinstance(layer, MixerConfig) or layer.mlp is False:
            return None
        return "mlp" if layer.mlp is True else layer.mlp

    def _layer(self, name: str, table: dict[str, Any]) -> LayerConfig:
        kind = table.pop("type", name)
        if kind not in KINDS:
            raise ValueError(f"{name}: no layer kind is called '{kind}'; {nearest(kind, KINDS)}")
        try:
            layer = KINDS[kind].model_validate_json(json.dumps(table))
        except ValidationError as error:
            raise ValueError(sentence(KINDS[kind], error, name)) from None
        try:
            layer.check(self.width)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        return layer.filled(self.width)

    @staticmethod
    def from_dict(data: Mapping[str, Any], where: str = "model") -> ModelConfig:
        """Build a config from plain data, such as a recipe's `[model]` table; raises ConfigError."""
        return validate(ModelConfig, data, where)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes back; None and defaults left out, layer tables beside the fields."""
        data = self.model_dump(mode="json", exclude={"layers"}, exclude_defaults=True)
        names = {type_: name for name, type_ in KINDS.items()}
        for name, layer in self.layers.items():
            table = layer.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
            kind = names[type(layer)]
            data[name] = table if kind == name else {"type": kind, **table}
        return data

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed, checked again."""
        return self.from_dict({**self.to_dict(), **changes})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The layer table of each of the `depth` layers."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.depth))

    def kind(self, index: int) -> Any:
        """Return the config of layer `index`: a mixer's, or that of a feed-forward layer that stands alone."""
        return self.layers[self.kinds[index]]

    def mlp_name(self, index: int) -> str | None:
        """Return the table of the feed-forward layer after the mixer of layer `index`; None if there is none."""
        return self._mlp_name(self.kind(index))

    def mlp_of(self, index: int) -> Any:
        """Return the config that `mlp_name` names, or None."""
        name = self.mlp_name(index)
        return None if name is None else self.layers[name]

    @property
    def norm_style(self) -> NormStyle:
        """The style of all norms but the mixers' own."""
        return NormStyle(self.norm_eps, self.zero_centred_norms)
