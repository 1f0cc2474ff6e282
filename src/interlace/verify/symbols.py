"""The worker that compares expressions, on which sympy may work for ever."""

from __future__ import annotations

from typing import Any

import sympy  # noqa: F401 - before the worker says that it is ready, since it takes half a second

from interlace.verify.expressions import same


def answer(request: dict[str, Any]) -> Any:
    """Return [right, why not] for an answer and a gold answer."""
    return list(same(request["answer"], request["gold"]))
