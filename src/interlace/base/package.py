"""Facts about the package itself: its version (pyproject.toml states it too) and where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VERSION = "0.1.0"


def folders() -> list[Path]:
    """Return the folders that hold the package: one, or two if it is installed in place."""
    from importlib.util import find_spec  # here, since `import interlace` reads this file
    from pathlib import Path

    spec = find_spec("interlace")
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
