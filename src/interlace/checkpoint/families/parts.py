"""Parts of configs that several families share: numbers, tokens, the trunk, attention, feed-forward tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from interlace.base.errors import CheckpointError
from interlace.layers.attention import AttentionConfig
from interlace.layers.moe import MoEConfig
from interlace.model.config import ModelConfig

DEEPEST = 10_000  # layers
SILU = ("silu", "swish")  # one function under two names


def whole_number(config: Mapping[str, Any], key: str, most: int) -> int:
    """Return a key's value, which must be an integer from 1 to `most`."""
    value = need(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise CheckpointError(f"config.json: {key} must be a whole number from 1 to {most:,}, got {value!r}")
    return value


def layer_names(config: Mapping[str, Any], key: str, depth: int, known: Iterable[str]) -> list[str] | None:
    """Return a list of one known word for each layer, or None if the key is not there."""
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
    """Return the value of a key that config.json must have."""
    if config.get(key) is None:
        raise CheckpointError(f"config.json: '{key}' is missing; a {config.get('model_type')} checkpoint needs it")
    return config[key]


def refuse_unless(config: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuse a setting that this family's code does not implement, instead of ignoring it."""
    if config.get(key, allowed[0]) not in allowed:
        raise CheckpointError(f"config.json: {key} = {config[key]!r} is not supported; known: {list(allowed)}")


def token_ids(table: Mapping[str, Any], key: str, where: object = "config.json") -> list[int]:
    """Return the ids under a key, one or a list; negative ones, which old releases write, mean none.

    Raises:
        CheckpointError: something else stands there.
    """
    value = table.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]:
        raise CheckpointError(f"{where}: {key} must be a token id or a list of them, got {wrong[0]!r}; correct it")
    return [i for i in ids if i >= 0]


def read_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special token ids of a published config."""
    bos, eos, pad = (token_ids(config, f"{kind}_token_id") for kind in ("bos", "eos", "pad"))
    return {"bos": next(iter(bos), None), "eos": eos, "pad": next(iter(pad), None)}


def write_tokens(config: ModelConfig) -> dict[str, Any]:
    """Return the special token ids in the form of published configs."""
    eos = config.tokens.eos
    one = None if not eos else eos[0] if len(eos) == 1 else list(eos)
    return {"bos_token_id": config.tokens.bos, "eos_token_id": one, "pad_token_id": config.tokens.pad}


def read_trunk(config: Mapping[str, Any], eps: float, eps_key: str = "rms_norm_eps") -> dict[str, Any]:
    """Return what all families write alike: everything but the layers; `eps` is the family's default."""
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
    """Write what `read_trunk` reads."""
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
    """Return whether the model-wide settings are the usual ones, but for those in `allowed`.

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
    """Return a SwiGLU layer as most families describe it; without biases unless the family has a key for them."""
    refuse_unless(config, "hidden_act", *SILU, None)
    return {"width": need(config, "intermediate_size"), "bias": bias_key is not None and bool(config.get(bias_key))}


def used_layers(config: ModelConfig) -> tuple[set[Any], set[Any]]:
    """Return the different layer configs that a model's pattern uses, and those of feed-forward layers after mixers."""
    mixers = {config.kind(i) for i in range(config.depth)}
    mlps = {config.mlp_of(i) for i in range(config.depth) if config.mlp_of(i) is not None}
    return mixers, mlps


def only(layers: Iterable[Any], kind: type) -> Any:
    """Return the one config of this kind among these; None if there is none, or more than one."""
    found = [x for x in layers if isinstance(x, kind)]
    return found[0] if len(found) == 1 else None


def is_olmo_attention(config: ModelConfig, attention: AttentionConfig) -> bool:
    """Return whether an attention kind is what Olmo 2, Olmo 3 and Olmo Hybrid call attention."""
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
    """Return whether a feed-forward config is SwiGLU, without biases unless they are allowed."""
    return getattr(mlp, "activation", "") == "swiglu" and not isinstance(mlp, MoEConfig) and (bias or not mlp.bias)


def write_attention(attention: AttentionConfig) -> dict[str, Any]:
    """Write what most families say about attention's sizes."""
    return {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "attention_bias": attention.bias,
    }


def tied_head(config: ModelConfig) -> set[str]:
    """Return the name of a tied head, which may be stored a second time; none if the head is not tied."""
    return {"lm_head.weight"} if config.tied_embeddings else set()
