"""`interlace inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import count, print_json, print_table, size
from interlace.cli.values import Named


def inspect(source: Named, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Parameters, FLOPs per token, and bytes of state and cache by context, beside the same model all attention.

    Examples:

        interlace inspect runs/quickstart/hybrid

        interlace inspect recipes/hybrid-small.toml --json

    Parameters
    ----------
    source: str
        A checkpoint or run folder (its config.json is enough), a hub id, or a recipe.
    json: bool
        Print one JSON document.
    """
    from interlace.checkpoint.folder import resolve
    from interlace.checkpoint.load import describe
    from interlace.model.sizes import CONTEXTS, all_attention, sizes
    from interlace.train.recipe import read_recipe

    config = (
        read_recipe(Path(source)).model if source.endswith(".toml") else describe(resolve(source, weights=False))[1]
    )
    model, dense = sizes(config), sizes(all_attention(config))
    if json:
        print_json({"config": config.to_dict(), "model": model.to_dict(), "all_attention": dense.to_dict()})
        return
    kinds = ", ".join(f"{n} x {config.kinds.count(n)}" for n in dict.fromkeys(config.kinds))
    parts = [[name, f"{n:,}", f"{n / model.total:.1%}"] for name, n in model.parameters.items()]
    parts += [["total", f"{model.total:,}", ""]]
    if model.active != model.total:
        parts += [["read by one token", f"{model.active:,}", f"{model.active / model.total:.1%}"]]
    parts += [["without embeddings", f"{model.non_embedding:,}", ""]]
    print_table(f"{source}: width {config.width}, {config.depth} layers ({kinds})", ["parameters", "", "share"], parts)
    rows = [
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
    print_table("per sequence; keys and values in bfloat16, recurrent state in float32", columns, rows)
    if config.max_positions and config.max_positions < CONTEXTS[-1]:
        print_table("", ["note"], [[f"the model is meant for contexts up to {config.max_positions:,} tokens"]])
