"""Parameters, FLOPs and bytes of a model, computed from its config alone; a law holds them to the built model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from interlace.base.errors import ConfigError
from interlace.layers.attention import AttentionConfig
from interlace.layers.base import FeedForwardConfig
from interlace.layers.latent_attention import LatentAttentionConfig
from interlace.model.config import ModelConfig

CONTEXTS = (1024, 8192, 65_536, 262_144, 1_048_576)


@dataclass(frozen=True)
class Sizes:
    """The cost of a model.

    Attributes:
        parameters: by part: "embedding", "head" (0 if tied), each layer table by name, "norms".
        total: all parameters.
        active: those that one token reads, the embedding included: less than `total` in a mixture of experts.
        non_embedding: all but embedding and head.
        flops_per_token: forward FLOPs by context, half of it visible on average (a multiply-add counts 2).
        training_flops_per_token: three times the forward at the same context.
        state_bytes: recurrent state per sequence by context.
        cache_bytes: keys and values per sequence by context.
    """

    parameters: dict[str, int]
    total: int
    active: int
    non_embedding: int
    flops_per_token: dict[int, float]
    training_flops_per_token: dict[int, float]
    state_bytes: dict[int, int]
    cache_bytes: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def sizes(config: ModelConfig, contexts: tuple[int, ...] = CONTEXTS, element_bytes: int = 2) -> Sizes:
    """Return the sizes of a model; `element_bytes` is the width of activations and of cached keys (2 for bf16)."""
    width = config.width
    names = [name for i in range(config.depth) for name in (config.kinds[i], config.mlp_name(i)) if name is not None]
    layers = [config.layers[name] for name in names]
    parts = {"embedding": config.vocabulary * width}
    parts["head"] = 0 if config.tied_embeddings else config.vocabulary * width
    for name, layer in zip(names, layers, strict=True):
        parts[name] = parts.get(name, 0) + layer.parameters(width)
    parts["norms"] = (len(layers) + 1) * width
    total = sum(parts.values())
    flops = {}
    for context in contexts:
        inside = sum(layer.flops_per_token(width, (context + 1) / 2) for layer in layers)
        flops[context] = inside + 2.0 * config.vocabulary * width
    return Sizes(
        parameters=parts,
        total=total,
        active=total - sum(layer.idle_parameters(width) for layer in layers),
        non_embedding=total - parts["embedding"] - parts["head"],
        flops_per_token=flops,
        training_flops_per_token={c: 3 * f for c, f in flops.items()},
        state_bytes={c: sum(layer.state_bytes(c, element_bytes) for layer in layers) for c in contexts},
        cache_bytes={c: sum(layer.cache_bytes(c, element_bytes) for layer in layers) for c in contexts},
    )


def all_attention(config: ModelConfig) -> ModelConfig:
    """Return the model with every mixer attention: its own attention kind without a window, or one of equal width."""
    own = [x for x in config.layers.values() if isinstance(x, AttentionConfig | LatentAttentionConfig)]
    if own:
        layer = next((a for a in own if getattr(a, "window", None) is None), own[0])
        layer = layer.model_copy(update={"window": None} if isinstance(layer, AttentionConfig) else {})
    else:
        heads = max(1, config.width // 64)
        while heads > 1 and (config.width % heads or (config.width // heads) % 2):
            heads -= 1
        position: Literal["rope", "none"] = "none" if (config.width // heads) % 2 else "rope"
        layer = AttentionConfig(heads=heads, position=position)
    kind = "attention" if isinstance(layer, AttentionConfig) else "latent_attention"
    table = {"type": kind, **layer.model_dump(mode="json", exclude_none=True)}
    data = config.to_dict()
    tables: dict[str, Any] = {name: data[name] for name, x in config.layers.items() if isinstance(x, FeedForwardConfig)}
    pattern = []
    for i in range(config.depth):
        mlp = config.mlp_name(i)
        name = config.kinds[i] if isinstance(config.kind(i), FeedForwardConfig) else f"all_attention_{mlp}"
        pattern.append(name)
        if name not in tables:
            tables[name] = {**table, "mlp": mlp or False}
    rest = {k: v for k, v in data.items() if k not in config.layers}
    return ModelConfig.from_dict({**rest, **tables, "pattern": pattern})


def match_parameters(config: ModelConfig, non_embedding: int, tolerance: float = 0.01) -> ModelConfig:
    """Return the config with its MLP width solved for: non-embedding parameters come within `tolerance`.

    Raises:
        ConfigError: no MLP width of at least 8 gets there; the message says how close it comes.
    """
    table = config.to_dict().get("mlp", {"width": 8})

    def widened(width: int) -> ModelConfig:
        return config.replace(mlp={**table, "width": width})

    base, one_more = (sizes(widened(width), contexts=()).non_embedding for width in (8, 9))
    layers = sum("mlp" in (config.kinds[i], config.mlp_name(i)) for i in range(config.depth))
    per_unit = one_more - base
    wanted = 8 + round((non_embedding - base) / per_unit) if layers else 8
    wanted = max(8, wanted)
    tried = dict.fromkeys([max(8, 8 * round(wanted / 8)), wanted])  # a multiple of 8 where it is close enough
    for width in tried:
        solved = widened(width)
        error = sizes(solved, contexts=()).non_embedding / non_embedding - 1
        if abs(error) <= tolerance:
            return solved
    raise ConfigError(
        f"mlp.width: no width brings the model within {tolerance:.1%} of {non_embedding:,} non-embedding parameters "
        f"({width} is off by {error:+.1%}); change the model's width or depth"
    )
