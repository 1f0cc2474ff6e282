"""`interlace lm-eval`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def lm_eval(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run `lm_eval`, EleutherAI's harness, with interlace's models in it: all that follows is handed on to it.

    Releases of lm_eval up to 0.4.13 know no models of other packages; later ones find `--model interlace` by
    themselves, and plain `lm_eval --model interlace ...` is then the same.

    Example:

        interlace lm-eval --model interlace --model_args pretrained=runs/mine --tasks lambada_openai

    Parameters
    ----------
    arguments: str
        Those of lm_eval.
    """
    import sys
    from importlib import import_module

    from interlace.base.errors import BackendUnavailable, Failure, InterlaceError, first_line

    try:
        import_module("interlace.evaluate.lm_eval")  # registers the model
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "interlace":
            raise
        raise BackendUnavailable(
            "lm-eval: is not installed; install it with: pip install 'interlace[lm-eval]'"
        ) from None
    before, sys.argv = sys.argv, ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except InterlaceError:
        raise
    except Exception as error:  # its own, such as a task that needs the network
        raise Failure(f"lm_eval: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.argv = before
    return 0
