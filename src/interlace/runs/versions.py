"""The versions of software that the numbers and rows of a run depend on, beside its config."""

from __future__ import annotations

import importlib.metadata
import platform

from interlace.base.package import VERSION


def versions(*packages: str) -> dict[str, str]:
    """Versions of interlace, torch, Python and those of `packages` that are installed."""
    found = {"interlace": VERSION}
    for name in ("torch", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()}
