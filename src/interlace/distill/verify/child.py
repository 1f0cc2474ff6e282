"""What runs in a worker: expressions, patterns and schemas, any of which may take for ever."""

from __future__ import annotations

import re
from typing import Any

from interlace.distill.verify.expressions import same


def answer(request: dict[str, Any]) -> Any:
    """[right, why not] for one check."""
    kind = request["do"]
    if kind == "symbolic":
        return list(same(request["answer"], request["gold"]))
    if kind == "pattern":
        found = re.search(request["pattern"], request["text"], re.DOTALL)
        return [found is not None, "" if found else "the pattern is not found"]
    if kind == "schema":
        return list(fits(request["text"], request["schema"]))
    raise AssertionError(kind)


def fits(text: str, schema: dict[str, Any]) -> tuple[bool, str]:
    """Whether a text is JSON that fits a schema."""
    from interlace.distill.steps.ask import fitting

    value, error = fitting(text, schema)
    del value
    return not error, error.split(":")[0] if error else ""
