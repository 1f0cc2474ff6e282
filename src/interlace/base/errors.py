"""Every error that interlace raises on purpose.

InterlaceError
├── ConfigError            a recipe, a model config or an argument is wrong         (exit code 2)
│   └── ShapeError         tensors handed to an operator disagree                   (exit code 2)
│       └── StateUsed      a state was given to a second call                       (exit code 2)
├── DataError              a text source or token folder cannot be used             (exit code 2)
├── CheckpointError        a checkpoint is damaged, unsafe or does not fit          (exit code 2)
├── PromptTooLong          a prompt does not fit the model's limit                  (exit code 2)
├── RunError               a run folder belongs to something else                   (exit code 2)
├── BackendUnavailable     a backend was asked for that cannot serve this call      (exit code 2)
└── Failure                the work itself failed: disk full, a check is wrong      (exit code 1)
    └── Diverged           training's loss or gradient stopped being finite         (exit code 1)

A message holds the field, the rule, the value given and the remedy. The command line prints it on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InterlaceError(Exception):
    """The root of the tree.

    Attributes:
        exit_code: what the command line ends with.
        shared: whether all workers of a run raise it, so that none tells it to another, and the first one says it.
    """

    exit_code = 2
    shared = False


class ConfigError(InterlaceError):
    """A recipe, a model config or an argument breaks a rule."""


class ShapeError(ConfigError, ValueError):
    """Tensors handed to an operator disagree in shape, dtype or range; the message names the argument."""


class StateUsed(ShapeError):
    """A state was given to a second call; the first call has used it up."""


class DataError(InterlaceError):
    """A text source or a token folder cannot be used."""


class CheckpointError(InterlaceError):
    """A checkpoint is damaged, unsafe, or does not fit the model."""


class PromptTooLong(InterlaceError):
    """A prompt and the tokens asked for do not fit the model's limit."""


class RunError(InterlaceError):
    """A run folder holds a different run."""


class BackendUnavailable(InterlaceError):
    """A backend was named that cannot serve this device, dtype or shape."""


class Failure(InterlaceError):
    """The request was good and the work failed."""

    exit_code = 1


class Diverged(Failure):
    """A training step's loss or gradient is not finite."""

    shared = True


def nearest(word: str, known: Iterable[str], alike: float = 0.5) -> str:
    """Return a remedy for a misspelt name: "did you mean ...?" if one is as `alike` (1: equal), or the known names."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=alike)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(choices)}"


def first_line(error: BaseException) -> str:
    """Return the message of an error from other people's code, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
