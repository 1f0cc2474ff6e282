"""`interlace generate`."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

from cyclopts import Parameter

from interlace.cli.output import count, err, print_json, say, say_recommended
from interlace.cli.values import Named, Place, Whole


def generate(
    checkpoint: Named,
    prompt: str,
    *,
    max_tokens: Whole = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: Whole | None = None,
    min_p: float | None = None,
    seed: Whole | None = None,
    stop: list[str] | None = None,
    dtype: str = "auto",
    weights: str = "auto",
    weights_loss: Place | None = None,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Go on from a prompt; text appears as it is made.

    Examples:

        interlace generate runs/quickstart/hybrid "def parse(" --max-tokens 100

        interlace generate runs/mine "Once upon" --temperature 0.7 --min-p 0.05 --seed 1 --stop "."

        interlace generate runs/mine "Once upon" --weights int4 --weights-loss held-out.txt

    Parameters
    ----------
    checkpoint: str
        A checkpoint folder, a run folder (its newest checkpoint), or a hub id.
    prompt: str
        Text to go on from.
    max_tokens: int
        The most tokens to make.
    temperature: float
        0 for the likeliest token each time. If not given: what the release recommends, else 0.8.
    top_p: float
        Draw only from the likeliest tokens that together reach this probability. If not given: the release's, else 1.
    top_k: int
        Draw only from this many of the likeliest tokens; 0 for all. If not given: the release's, else all.
    min_p: float
        Draw only from tokens at least this likely relative to the likeliest. If not given: the release's, else 0.
    seed: int
        Makes the draws repeatable.
    stop: list[str]
        Text that ends the output; may be given several times.
    dtype: str
        "auto" (bfloat16 weights are widened where this machine is slow in bfloat16), "float32" or "bfloat16".
    weights: str
        "auto" (as they are), "int8" or "int4": rounded to 8 or 4 bits in groups of 64 inputs, of which a token reads
        about half or a quarter of bfloat16's bytes.
    weights_loss: Path
        A text on which to say, before generating, what rounding costs in bits per byte (its first 65,536 tokens count).
    device: str
        "cpu", or "cuda".
    json: bool
        Print one JSON document at the end instead of streaming.
    """
    import torch

    import interlace
    from interlace.base.errors import ConfigError
    from interlace.evaluate.rounding import rounding_loss
    from interlace.generation.pack import pack_for_decoding, rounding_of, widened
    from interlace.generation.text import recommended
    from interlace.model.device import check_device

    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"dtype: must be auto, float32 or bfloat16, got {dtype!r}")
    rounding = rounding_of(weights)
    if weights_loss is not None and rounding is None:
        raise ConfigError("weights_loss: measures what --weights int8 or int4 costs; give both or neither")
    check_device(device)
    model = interlace.load(checkpoint, dtype=None if dtype == "auto" else getattr(torch, dtype), device=device)
    if dtype == "auto":
        model = widened(model, rounding)
    loss = None
    if weights_loss is None:
        pack_for_decoding(model, rounding)
    else:
        loss = rounding_loss(model, rounding, weights_loss)
        say(f"{weights} weights: {loss.said}", style="dim", console=err)
    drawn: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    say_recommended(recommended(model, **drawn)[1])
    pieces = interlace.generate(model, prompt, max_tokens=max_tokens, seed=seed, stop=stop or [], **drawn)
    start, made = time.perf_counter(), []
    try:
        for piece in pieces:
            made.append(piece)
            if not json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        sys.stdout.flush()
        raise
    seconds, tokens = time.perf_counter() - start, pieces.tokens
    if json:
        document = {"prompt": prompt, "text": "".join(made), "tokens": tokens, "seconds": seconds}
        print_json(document if loss is None else {**document, "weights": loss.table(weights)})
        return
    sys.stdout.write("\n")
    say(f"{tokens} tokens, {count(tokens / max(seconds, 1e-9))} tokens/s", style="dim", console=err)
