"""What a published family is: its config translated both ways, and a map of its tensor names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from interlace.base.errors import CheckpointError
from interlace.layers.attention import AttentionConfig
from interlace.layers.moe import MoEConfig
from interlace.layers.rope import RopeConfig
from interlace.model.config import ModelConfig


@dataclass(frozen=True)
class Slot:
    """Rows [first, end) of one of our parameters (None: all of it), whose rows are all its axes but the last.

    `shape` is that of the published tensor where it differs, as for nn.Conv1d's weights with their axis of size 1.
    """

    name: str
    rows: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None


DEEPEST = 10_000  # layers
SILU = ("silu", "swish")  # one function under two names
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
    text: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda config: config)

    def keeps(self, name: str) -> bool:
        """Whether a tensor is carried along."""
        return self.kept is not None and re.match(self.kept, name) is not None

    def ignores(self, name: str) -> bool:
        """Whether a tensor belongs to another model, or to what only an engine of some other kind needs."""
        if _UNREAD.search(name):
            return True
        return self.ignored is not None and re.match(self.ignored, name) is not None

    def loaded(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the stored tensors that are not carried along and belong to no other model."""
        return {name: x for name, x in names.items() if not (self.keeps(name) or self.ignores(name))}


def whole_number(config: Mapping[str, Any], key: str, most: int) -> int:
    """A key that must be an integer from 1 to `most`."""
    value = need(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise CheckpointError(f"config.json: {key} must be a whole number from 1 to {most:,}, got {value!r}")
    return value


def layer_names(config: Mapping[str, Any], key: str, depth: int, known: Iterable[str]) -> list[str] | None:
    """A list of one known word for each layer, or None where the key is not there."""
    names = config.get(key)
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != depth:
        count = f"{len(names)} entries" if isinstance(names, list) else repr(names)
        raise CheckpointError(f"config.json: {key} must be a list of {depth} words, one for each layer, got {count}")
    words = list(known)
    unknown = [name for name in names if name not in words]
    if unknown:
        raise CheckpointError(f"config.json: {key} holds {unknown[0]!r}, not supported; known: {', '.join(words)}")
    return names


def need(config: Mapping[str, Any], key: str) -> Any:
    """A key that config.json must have."""
    if config.get(key) is None:
        raise CheckpointError(f"config.json: '{key}' is missing; a {config.get('model_type')} checkpoint needs it")
    return config[key]


def refuse_unless(config: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Stop at a setting that this family's code does not implement, rather than ignore it."""
    if config.get(key, allowed[0]) not in allowed:
        raise CheckpointError(f"config.json: {key} = {config[key]!r} is not supported; known: {list(allowed)}")


def token_ids(table: Mapping[str, Any], key: str, where: object = "config.json") -> list[int]:
    """The ids under a key, one or a list; negative ones, which old releases write, mean none.

    Raises:
        CheckpointError: something else stands there.
    """
    value = table.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]:
        raise CheckpointError(f"{where}: {key} must be a token id or a list of them, got {wrong[0]!r}; correct it")
    return [i for i in ids if i >= 0]


def read_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special token ids of a published config."""
    bos, eos, pad = (token_ids(config, f"{kind}_token_id") for kind in ("bos", "eos", "pad"))
    return {"bos": next(iter(bos), None), "eos": eos, "pad": next(iter(pad), None)}


def write_tokens(config: ModelConfig) -> dict[str, Any]:
    """The special token ids as published configs hold them."""
    eos = config.tokens.eos
    one = None if not eos else eos[0] if len(eos) == 1 else list(eos)
    return {"bos_token_id": config.tokens.bos, "eos_token_id": one, "pad_token_id": config.tokens.pad}


def read_trunk(config: Mapping[str, Any], eps: float, eps_key: str = "rms_norm_eps") -> dict[str, Any]:
    """What families say alike about everything but the layers; `eps` is the family's default."""
    return {
        "width": whole_number(config, "hidden_size", 1 << 20),
        "depth": whole_number(config, "num_hidden_layers", DEEPEST),
        "vocabulary": whole_number(config, "vocab_size", 1 << 28),
        "norm_eps": config.get(eps_key, eps),
        "tied_embeddings": config.get("tie_word_embeddings", False),
        "max_positions": config.get("max_position_embeddings"),
        "init_std": config.get("initializer_range", 0.02),
        "tokens": read_tokens(config),
    }


def write_trunk(config: ModelConfig, eps_key: str = "rms_norm_eps") -> dict[str, Any]:
    """The inverse of `read_trunk`."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocabulary,
        eps_key: config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        **({} if config.max_positions is None else {"max_position_embeddings": config.max_positions}),
        **write_tokens(config),
    }


def plain_trunk(config: ModelConfig, **allowed: Any) -> bool:
    """Whether the model-wide settings are the usual ones, but for those in `allowed`.

    Published configs have no key for the length at which dynamic RoPE begins to stretch: it is the longest context.
    """
    usual = {
        "zero_centred_norms": False,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_divisor": 1.0,
        "float32_residual": False,
    }
    ropes = [x.rope for x in used_layers(config)[0] if isinstance(x, AttentionConfig) and x.position == "rope"]
    begins = all(r.scaling != "dynamic" or r.original_context == config.max_positions for r in ropes)
    return begins and all(getattr(config, name) == value for name, value in {**usual, **allowed}.items())


def read_mlp(config: Mapping[str, Any], bias_key: str | None = None) -> dict[str, Any]:
    """A SwiGLU layer as most families describe it; without biases unless the family has a key for them."""
    refuse_unless(config, "hidden_act", *SILU, None)
    return {"width": need(config, "intermediate_size"), "bias": bias_key is not None and bool(config.get(bias_key))}


def used_layers(config: ModelConfig) -> tuple[set[Any], set[Any]]:
    """The different layer configs that a model's pattern uses, and the different feed-forward configs after mixers."""
    mixers = {config.kind(i) for i in range(config.depth)}
    mlps = {config.mlp_of(i) for i in range(config.depth) if config.mlp_of(i) is not None}
    return mixers, mlps


def only(layers: Iterable[Any], kind: type) -> Any:
    """The one config of this kind among these; None where there is none, or more than one."""
    found = [x for x in layers if isinstance(x, kind)]
    return found[0] if len(found) == 1 else None


def is_olmo_attention(config: ModelConfig, attention: AttentionConfig) -> bool:
    """Whether an attention kind is what Olmo 2, Olmo 3 and Olmo Hybrid call attention."""
    return (
        attention.norm == "output"
        and attention.mlp is True
        and attention.qk_norm == "projection"
        and attention.dim(config.width) * attention.heads == config.width
        and attention.scale is None
        and not attention.gate
        and attention.rope.fraction == 1
    )


def is_plain_mlp(mlp: Any, bias: bool = False) -> bool:
    """Whether a feed-forward config is SwiGLU, without biases unless they are allowed."""
    return getattr(mlp, "activation", "") == "swiglu" and not isinstance(mlp, MoEConfig) and (bias or not mlp.bias)


def write_attention(attention: AttentionConfig) -> dict[str, Any]:
    """What most families say about attention's sizes."""
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "attention_bias": attention.bias,
    }


_SCALINGS: dict[str, dict[str, str]] = {  # published kinds of scaling, and their keys beside `factor`
    "linear": {},
    "dynamic": {},
    "yarn": {
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
    "llama3": {"low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor"},
}
_ORIGINAL = "original_max_position_embeddings"


def rope_parameters(config: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The rope parameters of a config of any age: one table, or the top-level keys of transformers 4."""
    given = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    older = config.get("rope_parameters") or {}
    for key, default in (("rope_theta", theta), ("partial_rotary_factor", None)):
        if given.get(key) is None:
            given[key] = next((t[key] for t in (older, config) if t.get(key) is not None), default)
    return given


def read_rope(parameters: Mapping[str, Any], config: Mapping[str, Any], nested: bool = False) -> dict[str, Any]:
    """Our rope table from published rope parameters, which leave out what the config around them says.

    Args:
        nested: whether they stand in a table for each kind of layer, for which the config's own original length does
            not count.

    Raises:
        CheckpointError: a kind of scaling that is not implemented, or a key of it that is missing.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    table: dict[str, Any] = {"theta": float(parameters["rope_theta"])}
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        table["fraction"] = float(parameters["partial_rotary_factor"])
    if kind == "default":
        return table
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise CheckpointError(
            f"config.json: rope_type {kind!r} is not supported; known: default, {', '.join(_SCALINGS)}"
        )
    if kind != "linear":
        table["original_context"] = _original_context(parameters, config, nested, kind)
    factor: Any = parameters.get("factor")
    if factor is None and kind == "yarn" and config.get("max_position_embeddings"):
        factor = config["max_position_embeddings"] / table["original_context"]
    required = {"factor": factor} | {key: parameters.get(key) for key in _SCALINGS["llama3"] if kind == "llama3"}
    for key, value in required.items():
        if value is None:
            raise CheckpointError(f"config.json: {kind} rope needs '{key}'")
    table |= {"scaling": kind, "factor": float(factor)}
    table |= {ours: parameters[key] for key, ours in _SCALINGS[kind].items() if parameters.get(key) is not None}
    if kind == "yarn":
        table["truncate"] = bool(parameters.get("truncate", True))  # null is false
        table |= {ours: default for ours, default in (("beta_fast", 32.0), ("beta_slow", 1.0)) if not table.get(ours)}
        both: list[Any] = [parameters.get(key) for key in ("mscale", "mscale_all_dim")]
        if "attention_factor" not in table and all(both):
            top, bottom = (0.1 * float(scale) * math.log(factor) + 1.0 if factor > 1 else 1.0 for scale in both)
            table["attention_factor"] = top / bottom
    return table


def _original_context(parameters: Mapping[str, Any], config: Mapping[str, Any], nested: bool, kind: str) -> int:
    """Tokens that a model was first trained on; the longest context where nothing says it."""
    longest = config.get("max_position_embeddings")
    said = (
        [longest]
        if kind == "dynamic"
        else [None if nested else config.get(_ORIGINAL), parameters.get(_ORIGINAL), longest]
    )
    found = next((x for x in said if x is not None), None)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(
            f"config.json: {kind} rope needs '{_ORIGINAL}' or 'max_position_embeddings', got {found!r}"
        )
    return found


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Published rope parameters from our rope table."""
    published: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1:
        published["partial_rotary_factor"] = rope.fraction
    if rope.scaling == "none":
        return published
    published |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("yarn", "llama3"):
        published[_ORIGINAL] = rope.original_context
    values = {key: getattr(rope, ours) for key, ours in _SCALINGS[rope.scaling].items()}
    return published | {key: value for key, value in values.items() if value is not None}


def whole(names: Mapping[str, str]) -> Slots:
    """Published names whose tensors are our parameters as they are."""
    return {published: (Slot(ours),) for published, ours in names.items()}


def stacked(name: str, *sizes: int, first: int = 0) -> list[Slot]:
    """Slots for consecutive rows of one parameter."""
    slots = []
    for size in sizes:
        slots.append(Slot(name, (first, first + size)))
        first += size
    return slots


def linear_slots(published: str, ours: str, names: Mapping[str, str], bias: bool = False) -> Slots:
    """Linear layers by their published names under one prefix, with their biases if they have some."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return whole({f"{published}.{p}.{k}": f"{ours}.{o}.{k}" for p, o in names.items() for k in kinds})


ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}


def attention_slots(published: str, ours: str, kind: AttentionConfig) -> Slots:
    """An attention mixer under the names that nearly all families share."""
    slots = linear_slots(published, ours, ATTENTION, kind.bias)
    if kind.qk_norm != "none":
        names = {"q_norm": "query_norm", "k_norm": "key_norm"}
        slots |= whole({f"{published}.{p}.weight": f"{ours}.{o}.weight" for p, o in names.items()})
    return slots


def convolution_slots(published: str, ours: str, channels: int, taps: int) -> Slots:
    """nn.Conv1d's weight, whose axis of size 1 we do not keep."""
    return {f"{published}.weight": (Slot(f"{ours}.convolution", shape=(channels, 1, taps)),)}


def mlp_slots(published: str, ours: str, bias: bool = False) -> Slots:
    """A SwiGLU layer."""
    return linear_slots(published, ours, {f"{n}_proj": n for n in ("gate", "up", "down")}, bias)


def expert_slots(published: str, ours: str, moe: MoEConfig, width: int, names: tuple[str, ...]) -> Slots:
    """Experts stored one by one: `names` are those of gate, up and down, or of up and down; `width` is the model's."""
    slots: Slots = {}
    *into, out = names
    outputs = moe.latent or width
    for e in range(moe.experts):
        rows = stacked(f"{ours}.first", *[moe.width] * len(into), first=e * len(into) * moe.width)
        slots |= {f"{published}.{e}.{name}.weight": (slot,) for name, slot in zip(into, rows, strict=True)}
        slots[f"{published}.{e}.{out}.weight"] = tuple(stacked(f"{ours}.second", outputs, first=e * outputs))
    return slots


def trunk_slots(
    config: ModelConfig, embedding: str = "model.embed_tokens.weight", norm: str = "model.norm.weight"
) -> Slots:
    """Embedding, last norm, and the head unless it is the embedding."""
    slots = whole({embedding: "embedding.weight", norm: "norm.weight"})
    return slots if config.tied_embeddings else slots | whole({"lm_head.weight": "head.weight"})


def tied_head(config: ModelConfig) -> set[str]:
    """A tied head may be stored a second time."""
    return {"lm_head.weight"} if config.tied_embeddings else set()
