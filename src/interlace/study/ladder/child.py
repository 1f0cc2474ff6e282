"""One run of a ladder in its own process: python -m interlace.study.ladder.child RECIPE OUT DEVICE."""

from __future__ import annotations

import sys
from pathlib import Path

from interlace.base.errors import InterlaceError
from interlace.evaluate.training import train_and_report
from interlace.ops.core import kernels
from interlace.runs.processes import die_with_parent
from interlace.train.recipe import read_recipe


def main() -> None:
    """Train as `interlace train` does; an error is the last line of the log."""
    die_with_parent()
    kernels.keep_memory()
    recipe, out, device = sys.argv[1:]
    try:
        train_and_report(read_recipe(Path(recipe)), Path(out), device=device)
    except InterlaceError as error:
        sys.exit(f"interlace: {error}")


if __name__ == "__main__":
    main()
