"""`interlace`: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys

import cyclopts

from interlace.base.package import VERSION

HELP = """Train, study and run hybrid language models: recurrent layers interlaced with attention.

Start with `interlace quickstart`. Every verb explains itself: `interlace train --help`.
`--traceback` before a verb shows where an error came from.
"""

# What the list of verbs says of each: the first lines of their own help, so that nothing is imported to list them.
VERBS = {
    "quickstart": "Train a hybrid and a transformer side by side on real text, and compare them.",
    "train": "Train one model on your own text, or on a folder that `interlace data prepare` wrote.",
    "generate": "Go on from a prompt; text appears as it is made.",
    "chat": "Talk with a model; its own chat template writes the turns.",
    "inspect": "Parameters, FLOPs per token, and bytes of state and cache by context, beside the same model all "
    "attention.",
    "doctor": "Versions, processor, threads, and every operator's backends run against the float64 recurrence here.",
    "convert-checkpoint": "Rewrite a checkpoint under its family's released names, in another dtype or in other "
    "shards.",
    "report": "Compare any runs of training on one page: their curves against tokens, and a table.",
    "replay": "Take one step of a run again, by itself, and name the first layer with a bad value.",
    "average": "Write the mean of the weights of several checkpoints of one model.",
    "evaluate": "Score a model, or compare two on the same items, with intervals; every prompt and answer is kept.",
    "lm-eval": "Run `lm_eval`, EleutherAI's harness, with interlace's models in it.",
    "serve": "Serve models over HTTP, as OpenAI's clients ask.",
    "merge": "Write a model with the weights that a LoRA adapter adds to it.",
    "quantise": "Write a model whose weights have 8 or 4 bits; it opens as any other.",
    "recipes": "List the recipes that come with interlace, or copy one to start from.",
    "completion": "Print what completes verbs and options in a shell.",
}
GROUPS = {
    "data": "Text to token folders, and a look into them.",
    "study": "Comparisons that can be repeated: formal tasks, ladders, scaling laws.",
    "distill": "Make training data with a stronger model, or refine existing text with it.",
}
INTERRUPTED = 130  # exit code
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of a disk that takes no more
GOES_ON = {  # verbs whose work is kept whenever they end; others say themselves what was kept, or keep nothing
    "quickstart": "the same command goes on",
    "data prepare": "the same command goes on",
    "study ladder": "the same command goes on",
    "study tasks": "the same command runs the cells that are left",
    "distill generate": "the same command goes on",
    "convert-checkpoint": "the same command goes on",
    "evaluate": "the same command goes on",
}

app = cyclopts.App(
    name="interlace",
    help=HELP,
    version=VERSION,
    help_format="markdown",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # an interrupt is ours to speak of
)
for _verb, _words in VERBS.items():
    app.command(f"interlace.cli.{_verb.replace('-', '_')}:{_verb.replace('-', '_')}", name=_verb, help=_words)
for _group, _words in GROUPS.items():
    app.command(f"interlace.cli.{_group}:app", name=_group, help=_words)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another would break into the end
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    from interlace.base.errors import InterlaceError

    traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # here, where what it says can still be told
    except cyclopts.CycloptsError as error:
        verb = " ".join(("interlace", *(error.command_chain or ())))
        return _say(f"{error} (see {verb} --help)", 2)
    except InterlaceError as error:
        if traceback:
            raise
        shared = error.shared and os.environ.get("RANK", "0") != "0"  # the first worker says it
        return error.exit_code if shared else _say(str(error), error.exit_code)
    except KeyboardInterrupt as pressed:
        rest = str(pressed) or _goes_on(arguments)
        return _say(f"interrupted; {rest}" if rest else "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has left
        _drop_output()
        return 0
    except OSError as error:
        if error.filename is None and error.errno in FULL:  # files are written under `disk_errors`
            _drop_output()
            return _say(f"standard output: cannot be written: {error.strerror}", 1)
        if traceback:
            raise
        return _unforeseen(error)
    except Exception as error:
        if traceback:
            raise
        return _unforeseen(error)
    return code if isinstance(code, int) else 0


def _goes_on(arguments: list[str]) -> str:
    """What the same command would do, where work is kept."""
    words = [a for a in arguments if not a.startswith("-")]
    if "--dry-run" in arguments or "--help" in arguments:
        return ""
    return GOES_ON.get(" ".join(words[:2])) or GOES_ON.get(" ".join(words[:1]), "")


def _drop_output() -> None:
    """What is left of standard output goes nowhere, so that Python's own end does not stumble over it."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _unforeseen(error: Exception) -> int:
    what = f"{type(error).__name__}: {error}"
    return _say(f"an error that was not foreseen: {what} (run again with --traceback and report it)", 1)


def _say(text: str, code: int) -> int:
    """One line on standard error; returns the exit code."""
    print(f"interlace: {' '.join(text.split())}", file=sys.stderr)
    return code
