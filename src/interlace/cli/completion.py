"""`interlace completion`."""

from __future__ import annotations

import sys
from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print what completes verbs and options in a shell.

    Nothing is installed; your shell reads what this prints.

    Examples:

        interlace completion bash > ~/.local/share/bash-completion/completions/interlace

        interlace completion zsh > ~/.zfunc/_interlace

        interlace completion fish > ~/.config/fish/completions/interlace.fish

    Parameters
    ----------
    shell: Literal["bash", "zsh", "fish"]
        The shell that reads it.
    """
    from interlace.cli.main import app

    sys.stdout.write(app.generate_completion(shell=shell))
