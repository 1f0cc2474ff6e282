"""What runs in a worker: expressions, which sympy may think about for ever."""

from __future__ import annotations

from typing import Any

import sympy  # noqa: F401 - before the worker says that it is ready, since it takes half a second

from interlace.verify.expressions import same


def answer(request: dict[str, Any]) -> Any:
    """[right, why not]."""
    return list(same(request["answer"], request["gold"]))
