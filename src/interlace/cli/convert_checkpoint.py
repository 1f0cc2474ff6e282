"""`interlace convert-checkpoint`."""

from __future__ import annotations

import re
from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import Meter, print_json, print_table, size
from interlace.cli.values import Named, Place

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def convert_checkpoint(
    source: Named,
    target: Place,
    *,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Rewrite a checkpoint under its family's released names, in another dtype or in other shards.

    One tensor at a time is in memory. A run that was killed goes on where it was; at the end everything that was
    written is read back and compared with its source.

    Examples:

        interlace convert-checkpoint runs/hybrid exported --dtype bfloat16

        interlace convert-checkpoint downloads/qwen3-next here --max-shard-size 2GB

    Parameters
    ----------
    source: str
        A checkpoint folder of any family, a run folder, or a hub id.
    target: Path
        The folder to write, which must not exist yet.
    dtype: str
        Of the weights: auto for each tensor's own, or float32, bfloat16, float16. Decays and steps stay in float32.
    max_shard_size: str
        The most that one file holds, such as 500MB or 5GB.
    json: bool
        Print one JSON document.
    """
    import dataclasses

    import torch

    from interlace.base.errors import ConfigError
    from interlace.checkpoint.convert import convert

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype: must be auto, float32, bfloat16 or float16, got {dtype!r}")
    with Meter() as meter:
        result = convert(
            source,
            target,
            dtype=None if dtype == "auto" else getattr(torch, dtype),
            shard_bytes=_bytes(max_shard_size),
            watch=lambda now: meter.update(now, f"{size(now.done)} of {size(now.total)}"),
        )
    if json:
        print_json({"target": str(target), **dataclasses.asdict(result)})
        return
    earlier = f" ({result.resumed:,} from an earlier run)" if result.resumed else ""
    rows = [
        ["family", result.model_type],
        ["tensors", f"{result.tensors:,}"],
        ["files", f"{result.shards:,}{earlier}"],
        ["size", size(result.size_bytes)],
    ]
    print_table(f"{target}: written, read back and compared", ["", ""], rows, words=2)


def _bytes(text: str) -> int:
    """A size as people write it."""
    from interlace.base.errors import ConfigError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found[2].upper() if found else None
    if found is None or unit not in UNITS:
        raise ConfigError(f"max_shard_size: {text!r} is no size; write it as 500MB or 5GB")
    return int(float(found[1]) * UNITS[unit])
