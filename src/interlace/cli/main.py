"""`interlace`: finds the verb, and turns errors into one line and an exit code."""

from __future__ import annotations

import sys

import cyclopts

import interlace

HELP = """Train, study and run hybrid language models: recurrent layers interlaced with attention.

Start with `interlace quickstart`. Every verb explains itself: `interlace train --help`.
`--traceback` before a verb shows where an error came from.
"""

app = cyclopts.App(
    name="interlace", help=HELP, version=interlace.__version__, help_format="markdown", version_flags=["--version"]
)
for _verb in ("quickstart", "train", "generate", "chat", "inspect", "doctor"):
    app.command(f"interlace.cli.{_verb}:{_verb}", name=_verb)
app.command("interlace.cli.convert_checkpoint:convert_checkpoint", name="convert-checkpoint")
app.command("interlace.cli.data:app", name="data")
app.command("interlace.cli.study:app", name="study")
app.command("interlace.cli.distill:app", name="distill")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    from interlace.base.errors import InterlaceError

    traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        text = " ".join(str(error).split())
        print(f"interlace: {text} (see interlace --help)", file=sys.stderr)
        return 2
    except InterlaceError as error:
        if traceback:
            raise
        print(f"interlace: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interlace: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has left
        sys.stderr.close()
        return 0
    return code if isinstance(code, int) else 0
