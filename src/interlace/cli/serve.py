"""`interlace serve`."""

from __future__ import annotations

from interlace.cli.output import err, say
from interlace.cli.values import Named, Place, Whole


def serve(
    checkpoint: Named,
    *,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    model: list[str] | None = None,
    name: str | None = None,
    api_key_file: Place | None = None,
    memory: str = "8GB",
    rows: Whole = 64,
    max_queue: Whole = 256,
    max_tokens: Whole | None = None,
    drain_seconds: Whole = 30,
    allow_origin: list[str] | None = None,
    weights: str = "auto",
    device: str = "cpu",
) -> None:
    """Serve models over HTTP, as OpenAI's clients ask.

    Routes: /v1/models, /v1/completions, /v1/chat/completions, /v1/responses, /tokenize, /detokenize, /health, /metrics.

    Examples:

        interlace serve runs/mine

        interlace serve runs/mine --model other=runs/other --port 9000

        interlace serve models/large --weights int4 --memory 8GB

        interlace serve runs/mine --host 0.0.0.0 --api-key-file keys.txt --memory 24GB

    Parameters
    ----------
    checkpoint: str
        A checkpoint folder, a run folder (its newest checkpoint), or a hub id.
    host: str
        The address to listen on. One that others reach needs --api-key-file.
    port: int
        The port; 0 for any that is free.
    model: list[str]
        Another model as NAME=FOLDER; may be given several times. Each has its own --memory.
    name: str
        What requests call the checkpoint; its last folder's name if not given.
    api_key_file: Path
        A file with a key on each line, which only its owner can read. Every request must bear one.
    memory: str
        For weights, states and what is kept for reuse of a model together, such as 8GB or 512MiB.
    rows: int
        The most answers that are made at a time.
    max_queue: int
        How many requests may wait beside them; more are told to come again (429).
    max_tokens: int
        The most tokens of an answer. If not given: as many as the model's limit allows.
    drain_seconds: int
        How long answers may go on after SIGTERM.
    allow_origin: list[str]
        A page's origin that may ask from a browser, such as https://example.org; may be given several times.
    weights: str
        "auto" (as they are), "int8" or "int4": rounded to 8 or 4 bits, of which a token reads fewer bytes.
    device: str
        "cpu", or "cuda".
    """
    from functools import partial
    from pathlib import Path

    import interlace
    from interlace.base.errors import BackendUnavailable, ConfigError
    from interlace.generation.pack import pack_for_decoding, rounding_of
    from interlace.model.device import check_device

    check_device(device)
    rounding = rounding_of(weights)

    def load(folder: str) -> interlace.HybridLM:
        return pack_for_decoding(interlace.load(folder, device=device), rounding)

    try:
        from interlace.serve.run import serve as run
    except ImportError as error:
        raise BackendUnavailable(
            f"serve: needs {error.name}; install it with: pip install 'interlace[serve]'"
        ) from None
    named = {name or Path(str(checkpoint)).name or "model": str(checkpoint)}
    for other in model or []:
        label, mark, folder = other.partition("=")
        if not mark or not label or not folder:
            raise ConfigError(f"model: must be NAME=FOLDER, got {other!r}")
        if label in named:
            raise ConfigError(f"model: two are called '{label}'; give one of them another name")
        named[label] = folder
    run(
        {label: partial(load, folder) for label, folder in named.items()},
        host=host,
        port=port,
        api_key_file=api_key_file,
        memory=memory,
        rows=rows,
        max_queue=max_queue,
        max_tokens=max_tokens,
        drain_seconds=drain_seconds,
        origins=tuple(allow_origin or ()),
        say=lambda text: say(text, console=err),
    )
