"""What a published family is: its config translated both ways, and a map of its tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from interlace.base.errors import CheckpointError
from interlace.layers.attention import AttentionConfig
from interlace.layers.base import MixerConfig
from interlace.layers.rope import RopeConfig
from interlace.model.config import ModelConfig


@dataclass(frozen=True)
class Slot:
    """Where a published tensor goes: rows [first, end) of one of our parameters (None: all of it).

    `middle` says that the published tensor has an axis of size 1 in the middle, as nn.Conv1d's weights do.
    """

    name: str
    rows: tuple[int, int] | None = None
    middle: bool = False


@dataclass(frozen=True)
class Family:
    """One published family.

    Attributes:
        model_type: the `model_type` of its config.json.
        architecture: the class that `transformers` opens it with.
        read_config: its config.json to ours.
        write_config: ours to its config.json, or None if the family cannot express this model.
        slots: published name to slot, for saving and loading.
        aliases: other names and cuts seen in the wild to slots, for loading only; given the stored shapes by name.
        optional: published names that may be there and are not needed.
    """

    model_type: str
    architecture: str | None
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any] | None]
    slots: Callable[[ModelConfig], dict[str, Slot]]
    aliases: Callable[[ModelConfig, Mapping[str, tuple[int, ...]]], dict[str, Slot]] = field(default=lambda *_: {})
    optional: Callable[[ModelConfig], set[str]] = field(default=lambda _: set())


def need(config: Mapping[str, Any], key: str) -> Any:
    """A key that config.json must have."""
    if config.get(key) is None:
        raise CheckpointError(f"config.json: '{key}' is missing; a {config.get('model_type')} checkpoint needs it")
    return config[key]


def refuse_unless(config: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Stop at a setting that this family's code does not implement, rather than ignore it."""
    if config.get(key, allowed[0]) not in allowed:
        raise CheckpointError(f"config.json: {key} = {config[key]!r} is not supported; known: {list(allowed)}")


def read_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special token ids of a published config."""
    eos = config.get("eos_token_id")
    eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return {"bos": config.get("bos_token_id"), "eos": eos, "pad": config.get("pad_token_id")}


def write_tokens(config: ModelConfig) -> dict[str, Any]:
    """The special token ids as published configs hold them."""
    eos = config.tokens.eos
    one = None if not eos else eos[0] if len(eos) == 1 else list(eos)
    return {"bos_token_id": config.tokens.bos, "eos_token_id": one, "pad_token_id": config.tokens.pad}


def read_trunk(config: Mapping[str, Any], eps: float) -> dict[str, Any]:
    """What Olmo 3 and Olmo Hybrid say alike about everything but the mixers; `eps` is the family's default."""
    refuse_unless(config, "hidden_act", "silu")
    return {
        "width": need(config, "hidden_size"),
        "depth": need(config, "num_hidden_layers"),
        "vocabulary": need(config, "vocab_size"),
        "mlp": {"width": need(config, "intermediate_size")},
        "norm_eps": config.get("rms_norm_eps", eps),
        "tied_embeddings": config.get("tie_word_embeddings", False),
        "max_positions": config.get("max_position_embeddings"),
        "init_std": config.get("initializer_range", 0.02),
        "tokens": read_tokens(config),
    }


def write_trunk(config: ModelConfig, attention: AttentionConfig) -> dict[str, Any]:
    """The inverse of `read_trunk`, with what both families say about attention."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocabulary,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        **({} if config.max_positions is None else {"max_position_embeddings": config.max_positions}),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "attention_bias": attention.bias,
        **write_tokens(config),
    }


def is_olmo_attention(config: ModelConfig, attention: AttentionConfig) -> bool:
    """Whether an attention kind is what Olmo 2, Olmo 3 and Olmo Hybrid call attention."""
    return (
        attention.norm == "output"
        and attention.mlp
        and attention.qk_norm == "projection"
        and attention.head_dim == config.width // attention.heads
    )


def read_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Our rope table from published rope parameters.

    Raises:
        CheckpointError: a kind of scaling that is not implemented.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    table: dict[str, Any] = {"theta": float(parameters["rope_theta"])}
    if kind == "default":
        return table
    if kind not in ("linear", "yarn"):
        raise CheckpointError(f"config.json: rope_type {kind!r} is not supported; known: default, linear, yarn")
    table |= {"scaling": kind, "factor": float(parameters["factor"])}
    if kind == "yarn":
        if parameters.get("mscale") or parameters.get("mscale_all_dim"):
            raise CheckpointError("config.json: rope parameter 'mscale' is not supported")
        names = {"original_max_position_embeddings": "original_context"}
        for key in ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"):
            if parameters.get(key) is not None:
                table[names.get(key, key)] = parameters[key]
        if "original_context" not in table:
            raise CheckpointError("config.json: yarn rope needs 'original_max_position_embeddings'")
    return table


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Published rope parameters from our rope table."""
    if rope.scaling == "none":
        return {"rope_type": "default", "rope_theta": rope.theta}
    published: dict[str, Any] = {"rope_type": rope.scaling, "rope_theta": rope.theta, "factor": rope.factor}
    if rope.scaling == "yarn":
        published |= {
            "original_max_position_embeddings": rope.original_context,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.truncate,
        }
        if rope.attention_factor is not None:
            published["attention_factor"] = rope.attention_factor
    return published


def attention_slots(layer: str, block: str, kind: MixerConfig) -> dict[str, Slot]:
    """The names that Olmo 2, Olmo 3 and Olmo Hybrid share for an attention layer's mixer."""
    bias = getattr(kind, "bias", False)
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    slots = {f"{layer}.self_attn.{p}.weight": Slot(f"{block}.mixer.{o}.weight") for p, o in names.items()}
    if bias:
        slots |= {f"{layer}.self_attn.{p}.bias": Slot(f"{block}.mixer.{o}.bias") for p, o in names.items()}
    return slots | {
        f"{layer}.self_attn.q_norm.weight": Slot(f"{block}.mixer.query_norm.weight"),
        f"{layer}.self_attn.k_norm.weight": Slot(f"{block}.mixer.key_norm.weight"),
        f"{layer}.post_attention_layernorm.weight": Slot(f"{block}.mixer_norm.weight"),
        f"{layer}.post_feedforward_layernorm.weight": Slot(f"{block}.mlp_norm.weight"),
    }


def mlp_slots(layer: str, block: str) -> dict[str, Slot]:
    """The names of a SwiGLU layer."""
    return {f"{layer}.mlp.{n}_proj.weight": Slot(f"{block}.mlp.{n}.weight") for n in ("gate", "up", "down")}


def trunk_slots(config: ModelConfig) -> dict[str, Slot]:
    """Embedding, last norm, and the head unless it is the embedding."""
    slots = {"model.embed_tokens.weight": Slot("embedding.weight"), "model.norm.weight": Slot("norm.weight")}
    return slots if config.tied_embeddings else slots | {"lm_head.weight": Slot("head.weight")}


def tied_head(config: ModelConfig) -> set[str]:
    """A tied head may be stored a second time."""
    return {"lm_head.weight"} if config.tied_embeddings else set()
