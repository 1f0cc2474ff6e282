"""`interlace inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import count, print_json, print_table, size
from interlace.cli.values import Named, Whole


def inspect(
    source: Named,
    *,
    memory: str | None = None,
    rows: Whole = 64,
    weights: str = "auto",
    dtype: str = "bfloat16",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Parameters, FLOPs per token, and bytes of state and cache by context, beside the same model all attention.

    Examples:

        interlace inspect runs/quickstart/hybrid

        interlace inspect recipes/hybrid-small.toml --json

        interlace inspect allenai/Olmo-Hybrid-7B --memory 8GB --weights int4

    Parameters
    ----------
    source: str
        A checkpoint or run folder (its config.json is enough), a hub id, or a recipe.
    memory: str
        Also say how `interlace serve --memory` would divide so much, and how many sequences it would answer at a time.
    rows: int
        With --memory: the most answers at a time, as of `serve`.
    weights: str
        With --memory: "auto", "int8" or "int4", as of `serve`. A folder of `interlace quantise` says so itself.
    dtype: str
        With --memory: of weights that are not rounded, "bfloat16" or "float32".
    json: bool
        Print one JSON document.
    """
    import torch

    from interlace.base.errors import ConfigError
    from interlace.checkpoint.folder import resolve
    from interlace.checkpoint.load import describe
    from interlace.checkpoint.rounded import stored_rounding
    from interlace.generation.budget import parse_bytes
    from interlace.generation.pack import rounding_of
    from interlace.generation.plan import plan
    from interlace.model.sizes import CONTEXTS, all_attention, sizes
    from interlace.train.recipe import read_recipe

    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: must be float32 or bfloat16, got {dtype!r}")
    rounding = rounding_of(weights)
    if source.endswith(".toml"):
        config = read_recipe(Path(source)).model
    else:
        _, config, said = describe(folder := resolve(source, weights=False))
        rounding = stored_rounding(folder, said) or rounding
    divided = None
    if memory is not None:
        divided = plan(config, parse_bytes("memory", memory), rows, CONTEXTS, getattr(torch, dtype), rounding)
    model, dense = sizes(config), sizes(all_attention(config))
    if json:
        found = {"config": config.to_dict(), "model": model.to_dict(), "all_attention": dense.to_dict()}
        print_json(found if divided is None else {**found, "memory": divided.to_dict()})
        return
    kinds = ", ".join(f"{n} x {config.kinds.count(n)}" for n in dict.fromkeys(config.kinds))
    parts = [[name, f"{n:,}", f"{n / model.total:.1%}"] for name, n in model.parameters.items()]
    parts += [["total", f"{model.total:,}", ""]]
    if model.active != model.total:
        parts += [["read by one token", f"{model.active:,}", f"{model.active / model.total:.1%}"]]
    parts += [["without embeddings", f"{model.non_embedding:,}", ""]]
    print_table(f"{source}: width {config.width}, {config.depth} layers ({kinds})", ["parameters", "", "share"], parts)
    lines = [
        [
            f"{c // 1024}k" if c < 1 << 20 else f"{c >> 20}M",
            count(model.flops_per_token[c]),
            count(dense.flops_per_token[c]),
            size(model.state_bytes[c]),
            size(model.cache_bytes[c]),
            size(dense.cache_bytes[c]),
        ]
        for c in CONTEXTS
    ]
    columns = ["context", "FLOPs/token", "all attention", "state", "keys and values", "all attention"]
    print_table("per sequence; keys and values in bfloat16, recurrent state in float32", columns, lines)
    if divided is not None:
        budget = divided.budget
        shares = [["weights", size(budget.weights)], ["reading a prompt", size(budget.working)]]
        shares += [["states and what is kept for reuse", size(budget.states)]]
        fits = ", ".join(f"{n} of {tokens // 1024}k" for tokens, n in divided.sequences.items() if n)
        print_table(f"--memory {memory}", ["", ""], [*shares, ["sequences at a time", fits or "none"]])
    if config.max_positions and config.max_positions < CONTEXTS[-1]:
        print_table("", ["note"], [[f"the model is meant for contexts up to {config.max_positions:,} tokens"]])
