"""interlace: train, study and run hybrid language models, whose recurrent layers are interlaced with attention.

Importing this opens no file, socket or device: every name below is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from interlace.base.package import VERSION

if TYPE_CHECKING:
    from interlace.base.errors import InterlaceError as InterlaceError
    from interlace.base.segments import Segments as Segments
    from interlace.checkpoint.load import load as load
    from interlace.checkpoint.save import save as save
    from interlace.generation.engine import Engine as Engine
    from interlace.generation.text import generate as generate
    from interlace.model.config import ModelConfig as ModelConfig
    from interlace.model.model import HybridLM as HybridLM
    from interlace.model.sizes import sizes as sizes
    from interlace.model.state import ModelState as ModelState

__version__ = VERSION

_HOMES = {
    "Engine": "interlace.generation.engine",
    "HybridLM": "interlace.model.model",
    "InterlaceError": "interlace.base.errors",
    "ModelConfig": "interlace.model.config",
    "ModelState": "interlace.model.state",
    "Segments": "interlace.base.segments",
    "generate": "interlace.generation.text",
    "load": "interlace.checkpoint.load",
    "save": "interlace.checkpoint.save",
    "sizes": "interlace.model.sizes",
}
_ROOMS = ("ops",)  # reached as attributes

__all__ = [
    "Engine",
    "HybridLM",
    "InterlaceError",
    "ModelConfig",
    "ModelState",
    "Segments",
    "generate",
    "load",
    "save",
    "sizes",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"interlace.{name}")
    raise AttributeError(f"module 'interlace' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
