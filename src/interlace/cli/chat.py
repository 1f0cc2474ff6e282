"""`interlace chat`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from interlace.cli.output import count, err, print_json, say, say_recommended
from interlace.cli.values import Named, Whole

if TYPE_CHECKING:
    from interlace.generation.conversation import Conversation

HINT = "/new begins again, /quit or Ctrl-D ends"


def chat(
    checkpoint: Named,
    *,
    prompt: str | None = None,
    system: str = "",
    max_tokens: Whole = 512,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: Whole | None = None,
    min_p: float | None = None,
    seed: Whole | None = None,
    weights: str = "auto",
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Talk with a model; its own chat template writes the turns.

    Lines from a pipe are turns too, one for each line.

    Examples:

        interlace chat runs/mine

        interlace chat runs/mine --system "Answer in one sentence." --temperature 0

        interlace chat runs/mine --prompt "12 + 30 = ?" --json

    Parameters
    ----------
    checkpoint: str
        A checkpoint folder, a run folder (its newest checkpoint), or a hub id.
    prompt: str
        One turn; the answer is printed and nothing more is asked.
    system: str
        What stands before the first turn.
    max_tokens: int
        The most tokens of an answer.
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
    weights: str
        "auto" (as they are), "int8" or "int4": rounded to 8 or 4 bits, of which a token reads fewer bytes.
    device: str
        "cpu", or "cuda".
    json: bool
        With --prompt: print the turns as one JSON document.
    """
    import interlace
    from interlace.base.errors import ConfigError
    from interlace.generation.conversation import Conversation
    from interlace.generation.pack import pack_for_decoding, rounding_of
    from interlace.generation.text import recommended
    from interlace.model.device import check_device

    if json and prompt is None:
        raise ConfigError("json: prints one answer; give --prompt too")
    check_device(device)
    rounding = rounding_of(weights)
    model = pack_for_decoding(interlace.load(checkpoint, device=device), rounding)
    sampling, taken = recommended(model, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    say_recommended(taken)
    talk = Conversation(model, sampling, max_tokens, system, seed)
    try:
        if prompt is not None:
            pieces = talk.say(prompt)
            if json:
                list(pieces)
                print_json({"messages": talk.messages, "tokens": talk.made_tokens})
            else:
                _show(talk, prompt, goes_on=False)
            return
        _turns(talk, system)
    finally:
        talk.close()


def _turns(talk: Conversation, system: str) -> None:
    """Ask until there are no more turns."""
    from interlace.base.errors import InterlaceError, PromptTooLong

    asked_by_hand = sys.stdin.isatty()
    if asked_by_hand:
        say(HINT, style="dim", console=err)
    while True:
        try:
            line = input("> ") if asked_by_hand else next(sys.stdin).rstrip("\n")
        except (EOFError, StopIteration):
            return
        if line.strip() == "/quit":
            return
        if line.strip() == "/new":
            talk.begin(system)
            continue
        if not line.strip():
            continue
        try:
            _show(talk, line, goes_on=asked_by_hand)
        except PromptTooLong as error:
            say(f"{error} (/new)", console=err)
        except InterlaceError as error:
            if not asked_by_hand:
                raise
            say(str(error), console=err)


def _show(talk: Conversation, line: str, goes_on: bool) -> None:
    """Print an answer as it comes; Ctrl-C breaks it off, and ends the verb unless somebody `goes_on` with the talk."""
    start = time.perf_counter()
    try:
        for piece in talk.say(line):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        sys.stdout.flush()
        if not goes_on:
            raise
        say("(broken off; the turn is not kept)", style="dim", console=err)
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    rate = count(talk.made_tokens / max(time.perf_counter() - start, 1e-9))
    say(f"{talk.made_tokens} tokens, {rate} tokens/s", style="dim", console=err)
