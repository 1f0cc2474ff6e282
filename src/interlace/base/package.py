"""What the package says of itself: its version, which pyproject.toml states too, and where it lies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

VERSION = "0.1.0"


def folders() -> list[Path]:
    """The folders that hold it: one, or two where it is installed in place."""
    spec = find_spec("interlace")
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
