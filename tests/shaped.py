"""The operators' declared shapes are checked here and only here: in the first calls of each test.

To check every call took as long as the tests of models themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import jaxtyping
from beartype import beartype

OPS = Path(__file__).parents[1] / "src" / "interlace" / "ops"
MODULES = [
    f"interlace.ops.{file.parent.name}.{file.stem}"
    for file in sorted(OPS.glob("*/*.py"))
    if "Float[" in file.read_text(encoding="utf-8")
]
CHECKS = 100  # in one test; a call is two: what it is given, and what it returns

_made = 0


def begin() -> None:
    """Check the first calls that follow."""
    global _made
    _made = 0
    jaxtyping.config.update("jaxtyping_disable", False)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks by beartype, as `jaxtyping.jaxtyped` asks for it."""
    check = beartype(function)

    @wraps(check)
    def counted(*arguments: Any, **named: Any) -> Any:
        global _made
        _made += 1
        if _made >= CHECKS:
            jaxtyping.config.update("jaxtyping_disable", True)
        return check(*arguments, **named)

    return counted
