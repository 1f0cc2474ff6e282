"""Text from a model, piece by piece.

`interlace.generate` is both this room and the function users call, so the module itself is callable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from interlace.generate.engine import generate

        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
