"""`interlace merge`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import print_json, print_table
from interlace.cli.values import Named, Place


def merge(
    checkpoint: Named,
    adapter: Named,
    *,
    out: Place,
    dtype: str = "",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a model with the weights that a LoRA adapter adds to it.

    The adapter is one that `interlace train` wrote with `[train.lora]`, or one that `peft` wrote for such a model.

    Examples:

        interlace merge allenai/Olmo-Hybrid-7B runs/tuned --out models/tuned

        interlace merge models/base adapters/maths --out models/maths --dtype bfloat16

    Parameters
    ----------
    checkpoint: str
        The model that the adapter was trained beside: a checkpoint, a run folder or a hub id.
    adapter: str
        The adapter's folder, or the run folder that it was trained in.
    out: Path
        The folder to write.
    dtype: str
        Of the weights: "float32", "bfloat16" or "float16"; the checkpoint's own if not given.
    json: bool
        Print one JSON document.
    """
    import torch

    from interlace.base.errors import CheckpointError, ConfigError
    from interlace.base.files import check_new, user_path
    from interlace.checkpoint.merge import merge as run

    out = user_path(out, CheckpointError)
    if dtype not in ("", "float32", "bfloat16", "float16"):
        raise ConfigError(f"--dtype: must be float32, bfloat16 or float16, got {dtype}")
    check_new(out, CheckpointError)
    model = run(checkpoint, adapter, out, getattr(torch, dtype) if dtype else None)
    total = sum(p.numel() for p in model.parameters())
    if json:
        print_json({"out": str(out), "checkpoint": str(checkpoint), "adapter": str(adapter), "parameters": total})
        return
    rows = [["checkpoint", str(checkpoint)], ["adapter", str(adapter)], ["parameters", f"{total:,}"], ["out", str(out)]]
    print_table("merged", ["", ""], rows)
