"""`interlace quantise`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import print_json, print_table, size
from interlace.cli.values import Named, Place, Whole


def quantise(
    checkpoint: Named,
    *,
    out: Place,
    weights: str = "int4",
    group: Whole = 64,
    weights_loss: Place | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a model whose weights have 8 or 4 bits; it opens as any other.

    A token reads fewer bytes, and so it is faster on a CPU. The embedding and the norms stay as they are, and the head
    keeps 8 bits. The model cannot be trained.

    Examples:

        interlace quantise allenai/Olmo-Hybrid-7B --out models/olmo-int4

        interlace quantise runs/mine --out models/mine --weights int4 --group 32 --weights-loss held-out.txt

    Parameters
    ----------
    checkpoint: str
        A checkpoint folder, a run folder (its newest checkpoint), or a hub id.
    out: Path
        The folder to write.
    weights: str
        "int8" or "int4".
    group: int
        Inputs that share a scale, and with int4 a least value: 64 or 32 (a little larger and more exact).
    weights_loss: Path
        A text on which to say what rounding costs in bits per byte (its first 65,536 tokens count).
    json: bool
        Print one JSON document.
    """
    import interlace
    from interlace.base.errors import CheckpointError, ConfigError
    from interlace.base.files import check_new, user_path
    from interlace.evaluate.rounding import rounding_loss
    from interlace.generation.pack import pack_for_decoding, rounding_of

    out = user_path(out, CheckpointError)
    rounding = rounding_of(weights)
    if rounding is None:
        raise ConfigError("weights: must be int8 or int4, got 'auto'")
    rounding = rounding._replace(group=group)
    rounding.check()
    check_new(out, CheckpointError)
    model = interlace.load(checkpoint)
    if model.rounding is not None:
        raise CheckpointError(f"{checkpoint}: its weights have {model.rounding.bits} bits already")
    before, loss = model.weights_bytes, None
    if weights_loss is None:
        pack_for_decoding(model, rounding)
    else:
        loss = rounding_loss(model, rounding, weights_loss)
    interlace.save(model, out)
    after = model.weights_bytes
    if json:
        table = {"out": str(out), "checkpoint": str(checkpoint), "weights": weights, "group": group}
        lost = {} if loss is None else loss.table(weights)
        print_json({**table, "bytes": after, "bytes_before": before, **lost})
        return
    rows = [["checkpoint", str(checkpoint)], ["weights", f"{weights}, groups of {group}"]]
    rows.append(["size", f"{size(after)} instead of {size(before)}"])
    if loss is not None:
        rows.append(["loss", loss.said])
    print_table("quantised", ["", ""], [*rows, ["out", str(out)]])
